// `bobbin-fuse --reload`: another bobbin-fuse replaces itself and its daemon by what lies at their paths now, and we end when
// both have, or say why they have not. `systemctl reload` runs this, and its exit code is ours.
//
// We ask by SIGUSR2 that carries our process id. The answer is one line in a file of the cache's tmp folder, which has that
// id in its name: the next daemon deletes it, should we be gone by then.
#pragma once

#include <sys/types.h>

#include <string>

namespace bobbin {

// 0, or 1 after a line on stderr.
int reloadOther(pid_t process, const std::string& cache);

// On the other side: `problem` is empty when both are new. Which user we act as decides whose the file is.
void answerReload(const std::string& cache, int asker, const std::string& problem);

// The path by which this program was started, with its links unresolved: where they lead by then is what replaces it.
std::string startedAs();

}  // namespace bobbin
