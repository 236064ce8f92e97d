// Our end of the link: frames out from any thread, bytes in on the server's thread.
//
// Frames are sent at once where the socket takes them; what it does not take is queued. Without a daemon
// frames are dropped: the next one is asked for everything anew.
#pragma once

#include <mutex>

#include "link/frames.hpp"
#include "link/system.hpp"

namespace bobbin::link {

class Channel {
 public:
  // A socket to a daemon that has not said hello: only what `greet` sends goes out.
  void attach(Fd socket);
  // The daemon has gone, and with it what was queued.
  void detach();
  void setOpen() {
    const std::lock_guard lock(mutex_);
    isOpen_ = true;
  }

  // Any thread.
  void send(const Buffer& frame);
  // Before the daemon's hello, too.
  void greet(const Buffer& frame);
  // The socket takes bytes again.
  void flush();

  // What has come. False: the other end is closed or broken.
  bool receive(FrameReader& reader);

  int fd() const { return socket_.get(); }
  bool isOpen() const { return isOpen_; }
  // Bytes that wait: a daemon that does not read is no daemon.
  std::size_t queued() const;
  // For the next bobbin-fuse: what was not sent yet.
  Buffer rest() const;
  void queue(std::span<const std::uint8_t> bytes);

 private:
  void push(const Buffer& frame);

  mutable std::mutex mutex_;
  Fd socket_;
  Buffer pending_;
  std::size_t sent_ = 0;
  bool isOpen_ = false;
};

}  // namespace bobbin::link
