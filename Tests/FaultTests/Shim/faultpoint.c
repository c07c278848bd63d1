// An LD_PRELOAD shim for fault tests: counts the durability system calls of a process below a directory, and kills the
// process, fails the call, or changes what it does, at a chosen one.
//
//   FAULT_PREFIX=DIR   only calls on files below DIR count
//   FAULT_LOG=FILE     append "NUMBER CALL PATH" for each
//   FAULT_AT=N         act at the N-th (from 1); FAULT_WHEN=before|after|torn: SIGKILL before, after, or halfway a write
//   FAULT_ERRNO=E      fail the N-th call with errno E instead of killing; FAULT_STICKY=1: every one from the N-th on
//   FAULT_MATCH=TEXT   only calls whose path contains TEXT count
//   FAULT_OPS=LIST     only these count: open write sync rename unlink mkdir truncate, separated by commas
//   FAULT_SEED=NAME    a wrong system, to show that the sweep can fail:
//                      keep-source  a rename into inbox/ leaves its source (the proof of delivery) behind
//                      lose-body    a rename to *.body succeeds and does nothing
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long counter;

static const char *setting(const char *name) {
  const char *value = getenv(name);
  return value && *value ? value : NULL;
}

static int is_below(const char *path) {
  const char *prefix = setting("FAULT_PREFIX");
  if (!prefix || !path) return 0;
  // SQLite's shared memory is rebuilt at every start.
  size_t length = strlen(path);
  if (length > 4 && strcmp(path + length - 4, "-shm") == 0) return 0;
  return strncmp(path, prefix, strlen(prefix)) == 0;
}

static int path_of(int fd, char *out) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t count = readlink(link, out, PATH_MAX - 1);
  if (count < 0) return 0;
  out[count] = 0;
  return 1;
}

static int counts(const char *op) {
  const char *ops = setting("FAULT_OPS");
  return !ops || strstr(ops, op) != NULL;
}

enum { GO, FAIL, DIE_AFTER, TEAR };

/// Counts one call; kills now, or says what to do with it.
static int arrive(const char *op, const char *path) {
  if (!is_below(path) || !counts(op)) return GO;
  const char *match = setting("FAULT_MATCH");
  if (match && !strstr(path, match)) return GO;
  long number = atomic_fetch_add(&counter, 1) + 1;
  const char *log = setting("FAULT_LOG");
  if (log) {
    int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%ld %s %s\n", number, op, path);
    if (fd >= 0) {
      syscall(SYS_write, fd, line, length);
      syscall(SYS_close, fd);
    }
  }
  const char *at = setting("FAULT_AT");
  if (!at) return GO;
  long target = atol(at);
  const char *error = setting("FAULT_ERRNO");
  if (error) {
    if (number == target || (number > target && setting("FAULT_STICKY"))) {
      errno = atoi(error);
      return FAIL;
    }
    return GO;
  }
  if (number != target) return GO;
  const char *when = setting("FAULT_WHEN");
  if (when && strcmp(when, "after") == 0) return DIE_AFTER;
  if (when && strcmp(when, "torn") == 0 && strcmp(op, "write") == 0) return TEAR;
  kill(getpid(), SIGKILL);
  pause();
  return GO;
}

static void leave(int action) {
  if (action == DIE_AFTER || action == TEAR) {
    kill(getpid(), SIGKILL);
    pause();
  }
}

#define REAL(name) \
  static __typeof__(name) *real; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int opening(const char *path, int flags, const char *absolute) {
  (void)path;
  return flags & (O_CREAT | O_TRUNC) ? arrive("open", absolute) : GO;
}

int open(const char *path, int flags, ...) {
  REAL(open);
  va_list list;
  va_start(list, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;
  va_end(list);
  int action = opening(path, flags, path);
  if (action == FAIL) return -1;
  int result = real(path, flags, mode);
  leave(action);
  return result;
}

int open64(const char *path, int flags, ...) {
  REAL(open64);
  va_list list;
  va_start(list, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;
  va_end(list);
  int action = opening(path, flags, path);
  if (action == FAIL) return -1;
  int result = real(path, flags, mode);
  leave(action);
  return result;
}

static int writing(int fd) {
  int saved = errno;
  char path[PATH_MAX];
  int action = path_of(fd, path) ? arrive("write", path) : GO;
  if (action != FAIL) errno = saved;
  return action;
}

#define WRITER(name, parameters, whole, half) \
  ssize_t name parameters { \
    REAL(name); \
    int action = writing(fd); \
    if (action == FAIL) return -1; \
    ssize_t result = action == TEAR ? (half) : (whole); \
    leave(action); \
    return result; \
  }

// A vectored write torn: its first half, or half of its only vector.
#define TORN(call) \
  ({ struct iovec torn_one = {vectors->iov_base, vectors->iov_len / 2}; \
     const struct iovec *vectors_ = count == 1 ? &torn_one : vectors; \
     int count_ = count == 1 ? 1 : count / 2; \
     call; })

WRITER(write, (int fd, const void *data, size_t count), real(fd, data, count), real(fd, data, count / 2))
WRITER(pwrite, (int fd, const void *data, size_t count, off_t at), real(fd, data, count, at), real(fd, data, count / 2, at))
WRITER(pwrite64, (int fd, const void *data, size_t count, off64_t at), real(fd, data, count, at), real(fd, data, count / 2, at))
WRITER(pwritev, (int fd, const struct iovec *vectors, int count, off_t at), real(fd, vectors, count, at), TORN(real(fd, vectors_, count_, at)))
WRITER(pwritev64, (int fd, const struct iovec *vectors, int count, off64_t at), real(fd, vectors, count, at), TORN(real(fd, vectors_, count_, at)))
WRITER(pwritev2, (int fd, const struct iovec *vectors, int count, off_t at, int flags), real(fd, vectors, count, at, flags), TORN(real(fd, vectors_, count_, at, flags)))
WRITER(pwritev64v2, (int fd, const struct iovec *vectors, int count, off64_t at, int flags), real(fd, vectors, count, at, flags), TORN(real(fd, vectors_, count_, at, flags)))

#define SYNCER(name) \
  int name(int fd) { \
    REAL(name); \
    char path[PATH_MAX]; \
    int action = path_of(fd, path) ? arrive("sync", path) : GO; \
    if (action == FAIL) return -1; \
    int result = real(fd); \
    leave(action); \
    return result; \
  }

SYNCER(fsync)
SYNCER(fdatasync)

static int seeded_rename(const char *old, const char *new) {
  const char *seed = setting("FAULT_SEED");
  if (!seed) return 0;
  size_t length = strlen(new);
  if (strcmp(seed, "lose-body") == 0 && length > 5 && strcmp(new + length - 5, ".body") == 0) return 1;
  if (strcmp(seed, "keep-source") == 0 && strstr(new, "/inbox/")) return link(old, new) == 0 ? 1 : -1;
  return 0;
}

int rename(const char *old, const char *new) {
  REAL(rename);
  int action = arrive("rename", new);
  if (action == FAIL) return -1;
  int seeded = seeded_rename(old, new);
  int result = seeded == 1 ? 0 : seeded == -1 ? -1 : real(old, new);
  leave(action);
  return result;
}

int renameat2(int old_dir, const char *old, int new_dir, const char *new, unsigned flags) {
  REAL(renameat2);
  int action = arrive("rename", new);
  if (action == FAIL) return -1;
  int seeded = seeded_rename(old, new);
  int result = seeded == 1 ? 0 : seeded == -1 ? -1 : real(old_dir, old, new_dir, new, flags);
  leave(action);
  return result;
}

int unlink(const char *path) {
  REAL(unlink);
  int action = arrive("unlink", path);
  if (action == FAIL) return -1;
  int result = real(path);
  leave(action);
  return result;
}

int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  int action = arrive("mkdir", path);
  if (action == FAIL) return -1;
  int result = real(path, mode);
  leave(action);
  return result;
}

#define TRUNCATER(name, type) \
  int name(int fd, type size) { \
    REAL(name); \
    char path[PATH_MAX]; \
    int action = path_of(fd, path) ? arrive("truncate", path) : GO; \
    if (action == FAIL) return -1; \
    int result = real(fd, size); \
    leave(action); \
    return result; \
  }

TRUNCATER(ftruncate, off_t)
TRUNCATER(ftruncate64, off64_t)
