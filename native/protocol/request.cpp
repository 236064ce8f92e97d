#include "protocol/request.hpp"

#include <algorithm>

namespace bobbin::fuse {

std::optional<Request> Request::parse(std::span<const std::uint8_t> message) {
  Request request;
  if (message.size() < sizeof(RequestHeader)) return std::nullopt;
  std::memcpy(&request.header_, message.data(), sizeof(RequestHeader));
  if (request.header_.len != message.size()) return std::nullopt;
  request.message_ = message;
  request.body_ = message.subspan(sizeof(RequestHeader));
  // Extensions stand at the end, counted in words of 8 bytes; we have no use for any.
  const std::size_t extensionBytes = std::size_t{request.header_.extensionWords} * 8;
  if (extensionBytes > request.body_.size()) return std::nullopt;
  request.body_ = request.body_.first(request.body_.size() - extensionBytes);
  return request;
}

std::optional<std::string_view> Request::text(std::size_t skip) const {
  if (skip >= body_.size()) return std::nullopt;
  const auto rest = body_.subspan(skip);
  const auto end = std::find(rest.begin(), rest.end(), std::uint8_t{0});
  if (end == rest.end()) return std::nullopt;
  return std::string_view(reinterpret_cast<const char*>(rest.data()),
                          static_cast<std::size_t>(end - rest.begin()));
}

std::optional<InitIn> Request::init() const {
  if (body_.size() < INIT_IN_BYTES_MIN) return std::nullopt;
  InitIn value{};
  std::memcpy(&value, body_.data(), std::min(body_.size(), sizeof value));
  return value;
}

}  // namespace bobbin::fuse
