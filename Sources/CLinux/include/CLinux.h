// GNU and Linux calls that Swift's Glibc module does not show. This header includes no libc header, on purpose:
// one that does breaks debug builds of the modules that import it.
#pragma once

/// renameat2(2) with RENAME_NOREPLACE. 0, or -1 with errno (EEXIST when the new name is taken).
int sp_rename_noreplace(int old_dir, const char *old_name, int new_dir, const char *new_name);
/// fallocate(2), mode 0: reserve space so that ENOSPC comes early. 0, or -1 with errno.
int sp_fallocate(int fd, long long offset, long long length);
/// Try an exclusive open-file-description lock (F_OFD_SETLK) on the whole file. 0, or -1 with errno (EAGAIN when held).
int sp_lock_exclusive(int fd);
/// Ask for a read lease and give it back: 1 when nobody has the file open for writing, 0 when somebody has,
/// -1 with errno where the file system or the owner does not allow leases.
int sp_no_writer(int fd);
/// PR_SET_DUMPABLE 0 and RLIMIT_CORE 0: no core file, no ptrace by the same user. 0, or -1 with errno.
int sp_forbid_dumps(void);
/// RLIMIT_NOFILE as high as it may be: a shell gives 1024, and partners hold more connections. 0, or -1 with errno.
int sp_raise_descriptor_limit(void);
/// mallopt(3) M_MMAP_THRESHOLD, 4 MiB: larger pieces go back to the system when they are freed. By itself glibc raises the threshold to
/// what was freed, up to 32 MiB, and keeps such pieces in the arenas of its threads (a gateway that checks records: 85 MiB, 23 so).
/// M_TRIM_THRESHOLD, 1 MiB: with the 128 KiB that it has otherwise, each package's buffers go back to the system and are fetched anew.
void sp_return_large_memory(void);
/// Ignore SIGPIPE and SIGXFSZ, which come back as errno, and SIGIO: it is sent when somebody opens a file for writing between the two
/// calls of sp_no_writer.
void sp_ignore_signals(void);
/// statfs(2) f_type of the file system that holds path; -1 with errno.
long long sp_filesystem_type(const char *path);
/// open(2) O_TMPFILE: a file without a name, which goes with its last descriptor. -1 with EOPNOTSUPP where the file system has none.
int sp_open_unnamed(const char *directory, unsigned mode);
/// Gives such a file a name that is not taken (linkat(2)). 0, or -1 with errno.
int sp_name_file(int fd, const char *path);
/// eventfd(2): non-blocking, close-on-exec.
int sp_eventfd(void);
/// Appends everything from one open file to another (sendfile(2)). 0, or -1 with errno.
int sp_copy(int from, int to);
/// preadv2(2) and pwritev2(2) with RWF_DONTCACHE: what is read or written does not stay in the page cache. -1 with EOPNOTSUPP where kernel or file
/// system cannot.
/// `parts` are `count` struct iovec.
long long sp_preadv_passing(int fd, const void *parts, int count, long long offset);
long long sp_pwritev_passing(int fd, const void *parts, int count, long long offset);

/// sync_file_range(2): what was written goes on its way to the disk; only a full queue of the disk is waited for.
void sp_start_writing(int fd, long long offset, long long bytes);
