// Writes what the fuzz targets start from: <folder>/{index,protocol,link}/<name>.
#include <filesystem>
#include <fstream>
#include <string>

#include "fuzz_inputs.hpp"
#include "protocol/request.hpp"

using namespace bobbin::test;
namespace fuse = bobbin::fuse;

namespace {

void write(const std::filesystem::path& folder, const std::string& name, const Bytes& bytes) {
  std::filesystem::create_directories(folder);
  std::ofstream(folder / name, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

void writeIndexes(const std::filesystem::path& folder) {
  for (const std::size_t padding : {std::size_t{0}, std::size_t{1}, std::size_t{3000}})
    write(folder, "padding-" + std::to_string(padding), compactIndex(craftIndex(padding)));
  Bytes raw = sealed(craftIndex());
  raw[0] |= 1U;
  write(folder, "raw", raw);
}

template <typename T>
std::string bytesOf(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

class Script {
 public:
  explicit Script(std::uint8_t mode) : bytes_{mode} {}
  Script& send(fuse::Opcode opcode, std::uint64_t nodeid, const std::string& body = "") {
    fuse::RequestHeader header{};
    header.len = static_cast<std::uint32_t>(sizeof header + body.size());
    header.opcode = static_cast<std::uint32_t>(opcode);
    header.unique = ++unique_;
    header.nodeid = nodeid;
    bytes_.push_back(static_cast<std::uint8_t>(Step::message));
    bytes_.push_back(static_cast<std::uint8_t>(header.len));
    bytes_.push_back(static_cast<std::uint8_t>(header.len >> 8U));
    for (const char c : bytesOf(header) + body) bytes_.push_back(static_cast<std::uint8_t>(c));
    return *this;
  }
  Script& then(Step step) {
    bytes_.push_back(static_cast<std::uint8_t>(step));
    return *this;
  }
  const Bytes& bytes() const { return bytes_; }

 private:
  Bytes bytes_;
  std::uint64_t unique_ = 0;
};

void writeMessages(const std::filesystem::path& folder) {
  using fuse::Opcode;
  using namespace std::string_literals;
  fuse::ReadIn read{};
  read.size = 4096;
  const std::string reading = bytesOf(read);
  const std::string opening = bytesOf(fuse::OpenIn{});
  const std::string sized = bytesOf(fuse::GetxattrIn{.size = 256, .padding = 0});
  // A bobbin-fuse of 0.1.0 set it in a file's node id.
  constexpr std::uint64_t MARK = 1ULL << 32U;
  for (std::uint8_t mode = 0; mode < 3; mode++) {
    const std::string of = "-" + std::to_string(mode);
    Script names(mode);
    names.send(Opcode::lookup, 1, "a\0"s)
        .send(Opcode::lookup, 2, "one.txt\0"s)
        .send(Opcode::lookup, 1, "none\0"s);
    names.send(Opcode::getattr, 3, std::string(16, '\0')).send(Opcode::statx, 1, bytesOf(fuse::StatxIn{}));
    names.send(Opcode::access, 1, bytesOf(fuse::AccessIn{.mask = 4, .padding = 0})).send(Opcode::statfs, 1);
    names.send(Opcode::forget, 2, std::string(8, '\1')).send(Opcode::batchForget, 0, std::string(24, '\1'));
    write(folder, "names" + of, names.bytes());
    Script lists(mode);
    lists.send(Opcode::opendir, 1, opening)
        .send(Opcode::readdir, 1, reading)
        .send(Opcode::readdirplus, 2, reading);
    lists.send(Opcode::releasedir, 1, std::string(24, '\0'));
    write(folder, "lists" + of, lists.bytes());
    Script attributes(mode);
    for (const std::uint64_t node : {1U, 2U, 3U, 4U}) {
      attributes.send(Opcode::listxattr, node, sized);
      for (const auto& name : {"meta"s, "hash"s, "top_hash"s, "message"s, "physical_key"s, "cached"s})
        attributes.send(Opcode::getxattr, node, sized + "user.quilt." + name + '\0');
    }
    write(folder, "attributes" + of, attributes.bytes());
    Script reads(mode);
    reads.send(Opcode::open, 3, opening).then(Step::answer).send(Opcode::read, 3, reading).then(Step::answer);
    reads.send(Opcode::lseek, 3, bytesOf(fuse::LseekIn{.fh = 0, .offset = 5, .whence = 3, .padding = 0}));
    reads.send(Opcode::flush, 3, std::string(24, '\0')).then(Step::evict).send(Opcode::read, 3, reading);
    reads.send(Opcode::interrupt, 0, bytesOf(fuse::InterruptIn{.unique = 5})).then(Step::index);
    reads.send(Opcode::release, 3, std::string(24, '\0')).then(Step::evict);
    write(folder, "reads" + of, reads.bytes());
    Script marked(mode);
    marked.send(Opcode::open, MARK | 5, opening)
        .send(Opcode::read, MARK | 5, reading)
        .then(Step::answer);
    marked.send(Opcode::open, 4, opening).then(Step::answer).send(Opcode::release, 4, std::string(24, '\0'));
    write(folder, "marked" + of, marked.bytes());
    Script refused(mode);
    for (const auto opcode : {Opcode::setattr, Opcode::unlink, Opcode::write, Opcode::rename2, Opcode::ioctl,
                              Opcode::init, Opcode::readlink, Opcode::destroy})
      refused.send(opcode, 1, std::string(64, '\0'));
    write(folder, "refused" + of, refused.bytes());
  }
}

void writeFrames(const std::filesystem::path& folder) {
  std::ifstream vectors(BOBBIN_LINK_VECTORS);
  Bytes all = {0, 6};
  int number = 0;
  for (std::string line; std::getline(vectors, line);) {
    if (!line.starts_with("daemon ")) continue;
    Bytes one = {0, 200};
    for (std::size_t i = 7; line[i] != ' '; i += 2) {
      const auto byte = static_cast<std::uint8_t>(std::stoi(line.substr(i, 2), nullptr, 16));
      one.push_back(byte);
      all.push_back(byte);
    }
    write(folder, "frame-" + std::to_string(number++), one);
  }
  write(folder, "stream", all);
  for (std::uint8_t kind = 1; kind < LINK_INPUTS; kind++) {
    Bytes state(200);
    state[0] = kind;
    write(folder, "state-" + std::to_string(kind), state);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::filesystem::path folder = argv[1];
  writeIndexes(folder / "index");
  writeMessages(folder / "protocol");
  writeFrames(folder / "link");
  return 0;
}
