#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <unistd.h>

int sp_rename_noreplace(int old_dir, const char *old_name, int new_dir, const char *new_name) {
  return renameat2(old_dir, old_name, new_dir, new_name, RENAME_NOREPLACE);
}

int sp_fallocate(int fd, long long offset, long long length) { return fallocate(fd, 0, offset, length); }

int sp_lock_exclusive(int fd) {
  struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  return fcntl(fd, F_OFD_SETLK, &whole);
}

int sp_no_writer(int fd) {
  if (fcntl(fd, F_SETLEASE, F_RDLCK) == 0) return fcntl(fd, F_SETLEASE, F_UNLCK) == 0 ? 1 : -1;
  return errno == EAGAIN ? 0 : -1;
}

int sp_forbid_dumps(void) {
  struct rlimit none = {0, 0};
  if (setrlimit(RLIMIT_CORE, &none) != 0) return -1;
  return prctl(PR_SET_DUMPABLE, 0);
}

int sp_raise_descriptor_limit(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return -1;
  limit.rlim_cur = limit.rlim_max;
  return setrlimit(RLIMIT_NOFILE, &limit);
}

void sp_return_large_memory(void) {
  mallopt(M_MMAP_THRESHOLD, 4 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 20);
}

void sp_ignore_signals(void) {
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);
  signal(SIGIO, SIG_IGN);
}

long long sp_filesystem_type(const char *path) {
  struct statfs info;
  return statfs(path, &info) == 0 ? (long long)info.f_type : -1;
}

int sp_open_unnamed(const char *directory, unsigned mode) {
  int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, mode);
  // Whatever the umask.
  if (fd < 0 || fchmod(fd, mode) == 0) return fd;
  close(fd);
  return -1;
}

int sp_name_file(int fd, const char *path) {
  char own[32];
  snprintf(own, sizeof own, "/proc/self/fd/%d", fd);
  return linkat(AT_FDCWD, own, AT_FDCWD, path, AT_SYMLINK_FOLLOW);
}

int sp_eventfd(void) { return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); }

int sp_copy(int from, int to) {
  for (;;) {
    ssize_t moved = sendfile(to, from, NULL, 1 << 24);
    if (moved == 0) return 0;
    if (moved < 0 && errno != EINTR) return -1;
  }
}

// Younger than Debian's headers.
#ifndef RWF_DONTCACHE
#define RWF_DONTCACHE 0x80
#endif

long long sp_preadv_passing(int fd, const void *parts, int count, long long offset) {
  return preadv2(fd, parts, count, offset, RWF_DONTCACHE);
}

long long sp_pwritev_passing(int fd, const void *parts, int count, long long offset) {
  return pwritev2(fd, parts, count, offset, RWF_DONTCACHE);
}

// A hint: what goes wrong is told by fdatasync.
void sp_start_writing(int fd, long long offset, long long bytes) {
  sync_file_range(fd, offset, bytes, SYNC_FILE_RANGE_WRITE);
}
