// Writes files whose bytes follow from a seed and an offset, and reads them back: as fast as it can for the
// benchmarks, or for ever while a daemon is killed. The list of files has a line a file: SEED SIZE PATH.
//
//   reader write  FOLDER LIST                      makes them
//   reader check  FOLDER LIST [options]            reads each once and compares every byte
//   reader epochs FOLDER LIST [options]            open, fstat, read, close of each, in shuffled order
//   reader loop   FOLDER LIST [options]            the same with every byte compared, until SIGTERM
//
//   --threads N (1)   --epochs N (1)   --seed N (1)
//   --pause-us N      between two files of a thread
//   --once            loop: each file at most once, then wait for SIGTERM
//   --held            loop: open all files first, then read at random positions
//
// Answers with a line of JSON: an epoch each for `epochs`, at the end for the rest. A failed or wrong read is
// counted and told, never retried; the exit code is 1 then.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { READ_BYTES = 256 << 10, HELD_READ_BYTES = 64 << 10, THREADS_MAX = 64, TOLD_MAX = 20, HUNG_AFTER_S = 90 };

typedef struct {
  uint64_t seed;
  uint64_t size;
  const char* path;
  int fd;
} File;

// What the threads count, each for itself; added up when they have ended.
typedef struct {
  pthread_t thread;
  unsigned char* buffer;
  uint64_t random;
  uint64_t files, bytes, failed, wrong, slow;
  double longest_s;
} Worker;

static File* files;
static size_t file_count;
static size_t* order;
static unsigned thread_count = 1, epochs = 1, pause_us;
static uint64_t seed = 1;
static bool once, held, compare;
static atomic_size_t next_at;
static atomic_bool stopping;
static atomic_uint told;

static uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

static uint64_t random_next(uint64_t* state) { return mix(*state += 0x9e3779b97f4a7c15u); }

static double now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void die(const char* what, const char* path) {
  fprintf(stderr, "reader: %s %s: %s\n", what, path, strerror(errno));
  exit(2);
}

// `at` is a multiple of 8; the last word may be cut.
static void fill(unsigned char* to, uint64_t file_seed, uint64_t at, size_t size) {
  const uint64_t base = mix(file_seed);
  for (size_t i = 0; i < size; i += 8) {
    const uint64_t word = mix(base + ((at + i) >> 3));
    memcpy(to + i, &word, size - i < 8 ? size - i : 8);
  }
}

static bool is_right(const unsigned char* bytes, uint64_t file_seed, uint64_t at, size_t size) {
  const uint64_t base = mix(file_seed);
  for (size_t i = 0; i < size; i += 8) {
    const uint64_t word = mix(base + ((at + i) >> 3));
    if (memcmp(bytes + i, &word, size - i < 8 ? size - i : 8) != 0) return false;
  }
  return true;
}

static void load_list(const char* path) {
  FILE* list = fopen(path, "r");
  if (list == NULL) die("open", path);
  size_t room = 0;
  char* line = NULL;
  size_t line_room = 0;
  while (getline(&line, &line_room, list) > 0) {
    if (file_count == room) files = realloc(files, (room = room ? room * 2 : 1024) * sizeof *files);
    File* file = &files[file_count++];
    int path_at = 0;
    if (sscanf(line, "%lu %lu %n", &file->seed, &file->size, &path_at) != 2) die("read", path);
    line[strcspn(line, "\n")] = '\0';
    file->path = strdup(line + path_at);
    file->fd = -1;
  }
  fclose(list);
  order = malloc(file_count * sizeof *order);
  for (size_t i = 0; i < file_count; i++) order[i] = i;
}

static void shuffle(uint64_t* random) {
  for (size_t i = file_count; i > 1; i--) {
    const size_t j = random_next(random) % i;
    const size_t other = order[i - 1];
    order[i - 1] = order[j];
    order[j] = other;
  }
}

static void make_folders(char* path) {
  for (char* slash = path; (slash = strchr(slash, '/')) != NULL; slash++) {
    *slash = '\0';
    if (mkdir(path, 0755) != 0 && errno != EEXIST) die("mkdir", path);
    *slash = '/';
  }
}

static void write_all(void) {
  unsigned char* buffer = malloc(READ_BYTES);
  for (size_t i = 0; i < file_count; i++) {
    char* path = strdup(files[i].path);
    make_folders(path);
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0440);
    if (fd < 0) die("create", path);
    for (uint64_t at = 0; at < files[i].size;) {
      const size_t size = files[i].size - at < READ_BYTES ? files[i].size - at : READ_BYTES;
      fill(buffer, files[i].seed, at, size);
      if (write(fd, buffer, size) != (ssize_t)size) die("write", path);
      at += size;
    }
    close(fd);
    free(path);
  }
}

static void failed(Worker* worker, const File* file, const char* what) {
  worker->failed++;
  if (atomic_fetch_add(&told, 1) < TOLD_MAX) fprintf(stderr, "reader: %s %s: %s\n", what, file->path, strerror(errno));
}

static void wrong(Worker* worker, const File* file, const char* what) {
  worker->wrong++;
  if (atomic_fetch_add(&told, 1) < TOLD_MAX) fprintf(stderr, "reader: %s: %s\n", file->path, what);
}

// A system call has taken since `start`.
static void waited(Worker* worker, double start) {
  const double took_s = now_s() - start;
  if (took_s > worker->longest_s) worker->longest_s = took_s;
  if (took_s > 0.1) worker->slow++;
}

// For the epochs: nothing between the calls that ext4 would not need as well.
static void read_fast(Worker* worker, const File* file) {
  const int fd = open(file->path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return failed(worker, file, "open");
  struct stat stats;
  if (fstat(fd, &stats) != 0) {
    failed(worker, file, "fstat");
  } else {
    uint64_t done = 0;
    while (done < (uint64_t)stats.st_size) {
      const ssize_t n = read(fd, worker->buffer, READ_BYTES);
      if (n < 0) failed(worker, file, "read");
      if (n <= 0) break;
      done += (uint64_t)n;
    }
    if (done != file->size) wrong(worker, file, "is too short or too long");
    worker->bytes += done;
    worker->files++;
  }
  close(fd);
}

static void read_compared(Worker* worker, const File* file) {
  double start = now_s();
  const int fd = open(file->path, O_RDONLY | O_CLOEXEC);
  waited(worker, start);
  if (fd < 0) return failed(worker, file, "open");
  struct stat stats;
  start = now_s();
  if (fstat(fd, &stats) != 0) failed(worker, file, "fstat");
  waited(worker, start);
  uint64_t done = 0;
  for (;;) {
    // Until the end of the file is told, as a reader does that does not ask for the size.
    start = now_s();
    const ssize_t n = pread(fd, worker->buffer, READ_BYTES, (off_t)done);
    waited(worker, start);
    if (n < 0) failed(worker, file, "read");
    if (n <= 0) {
      if (n == 0 && done != file->size) wrong(worker, file, "is too short");
      break;
    }
    if (done % 8 != 0 || done + (uint64_t)n > file->size || !is_right(worker->buffer, file->seed, done, (size_t)n)) {
      wrong(worker, file, "has other bytes");
      break;
    }
    done += (uint64_t)n;
  }
  worker->bytes += done;
  worker->files++;
  start = now_s();
  close(fd);
  waited(worker, start);
}

static void read_held(Worker* worker, const File* file) {
  const uint64_t at = file->size <= HELD_READ_BYTES ? 0 : random_next(&worker->random) % (file->size - HELD_READ_BYTES) / 8 * 8;
  const size_t size = file->size - at < HELD_READ_BYTES ? file->size - at : HELD_READ_BYTES;
  const double start = now_s();
  const ssize_t n = pread(file->fd, worker->buffer, size, (off_t)at);
  waited(worker, start);
  if (n < 0) return failed(worker, file, "read");
  if (n != (ssize_t)size || !is_right(worker->buffer, file->seed, at, size)) wrong(worker, file, "has other bytes");
  worker->bytes += size;
  worker->files++;
}

static void* work(void* argument) {
  Worker* worker = argument;
  for (;;) {
    const size_t at = atomic_fetch_add(&next_at, 1);
    if (stopping || (at >= file_count && (once || !compare))) break;
    const File* file = &files[order[held ? random_next(&worker->random) % file_count : at % file_count]];
    if (!compare) read_fast(worker, file);
    else if (held) read_held(worker, file);
    else read_compared(worker, file);
    if (pause_us > 0) usleep(pause_us);
  }
  return NULL;
}

static void stop(int number) {
  (void)number;
  stopping = true;
}

// All threads over the list; how many of them did not end.
static unsigned run_workers(Worker* workers, bool wait_for_signal) {
  next_at = 0;
  sigset_t ending;
  sigemptyset(&ending);
  sigaddset(&ending, SIGTERM);
  sigaddset(&ending, SIGINT);
  // The threads do not take the signal: a call of theirs that a signal ends would look like a failure.
  if (wait_for_signal) pthread_sigmask(SIG_BLOCK, &ending, NULL);
  for (unsigned i = 0; i < thread_count; i++) pthread_create(&workers[i].thread, NULL, work, &workers[i]);
  if (wait_for_signal) {
    int number;
    sigwait(&ending, &number);
    stop(number);
  }
  unsigned hung = 0;
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += HUNG_AFTER_S;
  for (unsigned i = 0; i < thread_count; i++) {
    if (!wait_for_signal) pthread_join(workers[i].thread, NULL);
    else if (pthread_timedjoin_np(workers[i].thread, NULL, &until) != 0) hung++;
  }
  return hung;
}

// Returns how much went wrong.
static uint64_t tell(Worker* workers, double seconds, unsigned hung) {
  Worker sum = {0};
  for (unsigned i = 0; i < thread_count; i++) {
    sum.files += workers[i].files;
    sum.bytes += workers[i].bytes;
    sum.failed += workers[i].failed;
    sum.wrong += workers[i].wrong;
    sum.slow += workers[i].slow;
    if (workers[i].longest_s > sum.longest_s) sum.longest_s = workers[i].longest_s;
  }
  const bool exhausted = once && atomic_load(&next_at) >= file_count;
  printf("{\"files\":%lu,\"bytes\":%lu,\"seconds\":%.6f,\"failed\":%lu,\"wrong\":%lu,\"hung\":%u,"
         "\"longestMs\":%.3f,\"slow\":%lu,\"exhausted\":%s}\n",
         sum.files, sum.bytes, seconds, sum.failed, sum.wrong, hung, 1000 * sum.longest_s, sum.slow,
         exhausted ? "true" : "false");
  fflush(stdout);
  return sum.failed + sum.wrong + hung;
}

int main(int argc, char** argv) {
  if (argc < 4) return fprintf(stderr, "usage: reader write|check|epochs|loop FOLDER LIST [options]\n"), 2;
  const char* verb = argv[1];
  for (int i = 4; i < argc; i++) {
    const char* value = i + 1 < argc ? argv[i + 1] : "0";
    if (strcmp(argv[i], "--once") == 0) once = true;
    else if (strcmp(argv[i], "--held") == 0) held = true;
    else if (strcmp(argv[i], "--threads") == 0) thread_count = (unsigned)atoi(value), i++;
    else if (strcmp(argv[i], "--epochs") == 0) epochs = (unsigned)atoi(value), i++;
    else if (strcmp(argv[i], "--seed") == 0) seed = (uint64_t)atoll(value), i++;
    else if (strcmp(argv[i], "--pause-us") == 0) pause_us = (unsigned)atoi(value), i++;
    else return fprintf(stderr, "reader: unknown option %s\n", argv[i]), 2;
  }
  if (thread_count < 1 || thread_count > THREADS_MAX) return 2;
  load_list(argv[3]);
  if (chdir(argv[2]) != 0) die("enter", argv[2]);
  if (strcmp(verb, "write") == 0) return write_all(), 0;

  Worker workers[THREADS_MAX] = {0};
  uint64_t random = mix(seed);
  for (unsigned i = 0; i < thread_count; i++) {
    // Touched, so that no epoch pays for the first use of a page.
    workers[i].buffer = memset(aligned_alloc(4096, READ_BYTES), 1, READ_BYTES);
    workers[i].random = random_next(&random);
  }
  if (strcmp(verb, "epochs") == 0) {
    uint64_t bad = 0;
    for (unsigned epoch = 0; epoch < epochs; epoch++) {
      shuffle(&random);
      for (unsigned i = 0; i < thread_count; i++) workers[i].files = workers[i].bytes = 0;
      const double start = now_s();
      run_workers(workers, false);
      bad += tell(workers, now_s() - start, 0);
    }
    return bad > 0;
  }
  compare = true;
  shuffle(&random);
  if (held) {
    for (size_t i = 0; i < file_count; i++) {
      if ((files[i].fd = open(files[i].path, O_RDONLY | O_CLOEXEC)) < 0) die("open", files[i].path);
    }
  }
  const bool is_loop = strcmp(verb, "loop") == 0;
  if (!is_loop) once = true;
  if (is_loop) printf("ready\n"), fflush(stdout);
  const double start = now_s();
  const unsigned hung = run_workers(workers, is_loop);
  const uint64_t bad = tell(workers, now_s() - start, hung);
  // Threads that hang are not waited for.
  _exit(bad > 0);
}
