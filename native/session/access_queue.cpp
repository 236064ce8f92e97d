#include "session/access_queue.hpp"

#include "link/wire.hpp"

namespace bobbin {

namespace {
constexpr std::size_t RECORD_BYTES = 8 + 4 + 4 + 8;
}

std::uint64_t AccessQueue::countOf(const link::Access& record) {
  return record.kind == link::AccessKind::lost ? record.bytes : 1;
}

void AccessQueue::add(const link::Access& access) {
  const std::lock_guard lock(mutex_);
  if (records_.size() < RECORDS_MAX) {
    records_.push_back(access);
    return;
  }
  if (sent_ < records_.size() && records_.back().kind == link::AccessKind::lost)
    records_.back().bytes++;
  else
    records_.push_back({.timeNs = access.timeNs, .ino = 0, .kind = link::AccessKind::lost, .bytes = 1});
}

AccessQueue::Batch AccessQueue::take() {
  const std::lock_guard lock(mutex_);
  if (isContinued_) return {};
  Batch batch{.first = next_,
              .records = {records_.begin() + static_cast<std::ptrdiff_t>(sent_), records_.end()}};
  sent_ = records_.size();
  for (const auto& record : batch.records) next_ += countOf(record);
  return batch;
}

void AccessQueue::logged(std::uint64_t count) {
  const std::lock_guard lock(mutex_);
  if (isContinued_) {
    isContinued_ = false;
    records_.insert(records_.begin(), {.timeNs = 0, .ino = 0, .kind = link::AccessKind::lost, .bytes = 1});
    first_ = next_ = count;
    return;
  }
  std::size_t done = 0;
  for (; done < sent_ && first_ + countOf(records_[done]) <= count; done++) first_ += countOf(records_[done]);
  records_.erase(records_.begin(), records_.begin() + static_cast<std::ptrdiff_t>(done));
  sent_ -= done;
}

void AccessQueue::sendAgain() {
  const std::lock_guard lock(mutex_);
  sent_ = 0;
  next_ = first_;
}

void AccessQueue::continueLog() {
  const std::lock_guard lock(mutex_);
  isContinued_ = true;
}

link::Buffer AccessQueue::save() const {
  const std::lock_guard lock(mutex_);
  wire::Writer out;
  out.number(static_cast<std::uint8_t>(isContinued_)).number(first_).number(next_);
  out.number(static_cast<std::uint32_t>(sent_)).number(static_cast<std::uint32_t>(records_.size()));
  for (const auto& record : records_)
    out.number(record.timeNs).number(record.ino).number(record.kind).number(record.bytes);
  return std::move(out.bytes());
}

bool AccessQueue::restore(std::span<const std::uint8_t> saved) {
  wire::Reader in(saved);
  isContinued_ = in.number<std::uint8_t>() != 0;
  first_ = in.number<std::uint64_t>();
  next_ = in.number<std::uint64_t>();
  sent_ = in.number<std::uint32_t>();
  records_.clear();
  for (auto left = in.count(RECORD_BYTES); left > 0; left--) {
    link::Access record;
    record.timeNs = in.number<std::uint64_t>();
    record.ino = in.number<std::uint32_t>();
    record.kind = in.number<link::AccessKind>();
    record.bytes = in.number<std::uint64_t>();
    records_.push_back(record);
  }
  return in.isDone() && sent_ <= records_.size();
}

}  // namespace bobbin
