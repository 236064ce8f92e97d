/* drain ADDRESS COUNT PATH...: GETs the paths, COUNT times over, on one connection, and throws the bodies away.
 * ADDRESS: a unix socket's path, or a port of this machine; TOKEN in the environment, where it asks for one.
 * Prints bytes and seconds. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 20];

static int open_connection(const char *address) {
  if (address[0] == '/') {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strncpy(to.sun_path, address, sizeof to.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return connect(fd, (struct sockaddr *)&to, sizeof to) == 0 ? fd : -1;
  }
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(address))};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  return connect(fd, (struct sockaddr *)&to, sizeof to) == 0 ? fd : -1;
}

/* The length of the body, which was read; -1 for anything but a whole 200. */
static long get(int fd, const char *path) {
  const char *token = getenv("TOKEN");
  int asked = snprintf(buffer, sizeof buffer, "GET %s HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %s\r\n\r\n", path,
                       token ? token : "none");
  if (write(fd, buffer, asked) != asked) return -1;
  long have = 0, length = -1, got = 0;
  while (length < 0 || got < length) {
    long n = read(fd, buffer + (length < 0 ? have : 0), sizeof buffer - 1 - (length < 0 ? have : 0));
    if (n <= 0) return -1;
    if (length >= 0) {
      got += n;
      continue;
    }
    have += n;
    buffer[have] = 0;
    char *end = strstr(buffer, "\r\n\r\n");
    if (end == NULL) continue;
    char *field = strcasestr(buffer, "content-length:");
    if (strncmp(buffer, "HTTP/1.1 200", 12) != 0 || field == NULL) return -1;
    length = atol(field + 15);
    got = have - (end + 4 - buffer);
  }
  return length;
}

int main(int count, char **arguments) {
  if (count < 4) return 2;
  int fd = open_connection(arguments[1]);
  if (fd < 0) return 1;
  struct timespec from, to;
  long bytes = 0;
  clock_gettime(CLOCK_MONOTONIC, &from);
  for (int i = 0; i < atoi(arguments[2]); i++) {
    for (int k = 3; k < count; k++) {
      long length = get(fd, arguments[k]);
      if (length < 0) return 1;
      bytes += length;
    }
  }
  clock_gettime(CLOCK_MONOTONIC, &to);
  printf("%ld %.6f\n", bytes, (to.tv_sec - from.tv_sec) + (to.tv_nsec - from.tv_nsec) / 1e9);
}
