// What the next bobbin-fuse needs of a mount, as bytes.
#include "session/mount_record.hpp"

#include <cstring>
#include <utility>

#include "link/wire.hpp"

namespace bobbin {

link::Buffer MountRecord::save() const {
  wire::Writer out;
  out.number(id).number(mountId).text(device);
  out.number(request.uid).number(request.gid).number(request.umask).number(request.allowOther);
  out.number(request.openMode).number(request.timeNs);
  for (const std::string* text : {&request.mountpoint, &request.source, &request.index, &request.manifest,
                                  &request.registry, &request.package, &request.note})
    out.text(*text);
  out.number(request.message.has_value()).text(request.message.value_or(""));
  out.number(openMode).text(reason).number(agreement.minor).number(agreement.flags).number(isClosed);
  out.number(request.listAttributes);
  return std::move(out.bytes());
}

std::optional<MountRecord> MountRecord::restore(std::span<const std::uint8_t> saved) {
  wire::Reader in(saved);
  MountRecord record;
  record.id = in.number<std::uint32_t>();
  record.mountId = in.number<int>();
  record.device = in.text();
  link::Mount& request = record.request;
  request.uid = in.number<std::uint32_t>();
  request.gid = in.number<std::uint32_t>();
  request.umask = in.number<std::uint32_t>();
  request.allowOther = in.number<std::uint8_t>() != 0;
  request.openMode = static_cast<link::OpenMode>(in.number<std::uint8_t>());
  request.timeNs = in.number<std::int64_t>();
  for (std::string* text : {&request.mountpoint, &request.source, &request.index, &request.manifest,
                            &request.registry, &request.package, &request.note})
    *text = in.text();
  const bool hasMessage = in.number<std::uint8_t>() != 0;
  std::string message = in.text();
  if (hasMessage) request.message = std::move(message);
  record.openMode = static_cast<link::OpenMode>(in.number<std::uint8_t>());
  record.reason = in.text();
  record.agreement.minor = in.number<std::uint32_t>();
  record.agreement.flags = in.number<std::uint64_t>();
  record.isClosed = in.number<std::uint8_t>() != 0;
  // A service manager may have kept the record of a bobbin-fuse that did not know of it.
  if (in.isWhole() && !in.isDone()) request.listAttributes = in.number<std::uint8_t>() != 0;
  if (!in.isDone()) return std::nullopt;
  return record;
}

}  // namespace bobbin
