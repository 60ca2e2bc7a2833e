/* Makes one call of a command to the host fail: calls of SQLite and of the standard library, too.
 *
 * $COWFS_FAIL        which call: open, read, write, sync, length, allocate, rename, link, remove, mkdir, stat, list,
 *                    seek, attributes or lock
 * $COWFS_FAIL_ERRNO  with what; "short" writes (or reads) the first half of what was asked, and says so
 * $COWFS_FAIL_AFTER  how many such calls go well first
 * $COWFS_FAIL_EVER   if set, every later one fails as well
 * $COWFS_FAIL_BELOW  only of files below this directory, which ends with a slash; or of this one file
 * $COWFS_FAIL_STRUCK a file that gets a line for each call that failed
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
enum { GOES_WELL, FAILS, SHORT };

static long seen;

static int below(const char *path) {
    const char *root = getenv("COWFS_FAIL_BELOW");
    if (!root || !*root) return 0;
    size_t length = strlen(root);
    return root[length - 1] == '/' ? strncmp(path, root, length) == 0 : strcmp(path, root) == 0;
}

static void path_of(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_MAX - 1);
    out[length < 0 ? 0 : length] = 0;
}

static int verdict(const char *call, const char *path) {
    const char *which = getenv("COWFS_FAIL"), *with = getenv("COWFS_FAIL_ERRNO");
    if (!which || !with || strcmp(which, call) != 0 || !below(path)) return GOES_WELL;
    long after = atol(getenv("COWFS_FAIL_AFTER")), now = __atomic_fetch_add(&seen, 1, __ATOMIC_SEQ_CST);
    if (now < after || (now > after && !getenv("COWFS_FAIL_EVER"))) return GOES_WELL;
    int log = syscall(SYS_openat, AT_FDCWD, getenv("COWFS_FAIL_STRUCK"), O_CREAT | O_APPEND | O_WRONLY, 0600);
    syscall(SYS_write, log, path, strlen(path));
    syscall(SYS_write, log, "\n", 1);
    syscall(SYS_close, log);
    if (strcmp(with, "short") == 0) return SHORT;
    errno = atoi(with);
    return FAILS;
}

static int of_fd(const char *call, int fd) {
    char path[PATH_MAX];
    int kept = errno;
    path_of(fd, path);
    errno = kept;
    return verdict(call, path);
}

static int of_path(const char *call, int dir, const char *path) {
    /* The standard library asks so whether the kernel knows statx. */
    if (!path) return GOES_WELL;
    char whole[2 * PATH_MAX + 2] = "";
    int kept = errno;
    if (path[0] != '/' && dir != AT_FDCWD) path_of(dir, whole);
    errno = kept;
    size_t length = strlen(whole);
    snprintf(whole + length, sizeof whole - length, "%s%s", length ? "/" : "", path);
    return verdict(call, whole);
}

#define MODE(flags, last) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list list; \
        va_start(list, last); \
        mode = va_arg(list, mode_t); \
        va_end(list); \
    }
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        MODE(flags, flags) \
        return of_path("open", AT_FDCWD, path) ? -1 : NEXT(name)(path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int dir, const char *path, int flags, ...) { \
        MODE(flags, flags) \
        return of_path("open", dir, path) ? -1 : NEXT(name)(dir, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

#define MOVES(call, name, arguments, given, half) \
    ssize_t name arguments { \
        int how = of_fd(call, fd); \
        if (how == FAILS) return -1; \
        if (how == SHORT && size > 1) size = half; \
        return NEXT(name) given; \
    }
MOVES("read", read, (int fd, void *at, size_t size), (fd, at, size), size / 2)
MOVES("read", pread64, (int fd, void *at, size_t size, off64_t from), (fd, at, size, from), size / 2)
MOVES("write", write, (int fd, const void *at, size_t size), (fd, at, size), size / 2)
MOVES("write", pwrite64, (int fd, const void *at, size_t size, off64_t to), (fd, at, size, to), size / 2)
MOVES("write", writev, (int fd, const struct iovec *parts, int size), (fd, parts, size), size / 2)
ssize_t preadv2(int fd, const struct iovec *parts, int count, off_t from, int flags) {
    return of_fd("read", fd) == FAILS ? -1 : NEXT(preadv2)(fd, parts, count, from, flags);
}
ssize_t copy_file_range(int in, off64_t *from, int fd, off64_t *to, size_t size, unsigned flags) {
    int how = of_fd("write", fd);
    if (how == FAILS) return -1;
    return NEXT(copy_file_range)(in, from, fd, to, how == SHORT && size > 1 ? size / 2 : size, flags);
}

#define ON_FD(call, name, arguments, given) \
    int name arguments { return of_fd(call, fd) ? -1 : NEXT(name) given; }
#define ON_PATH(call, name, arguments, given) \
    int name arguments { return of_path(call, AT_FDCWD, path) ? -1 : NEXT(name) given; }
#define ON_DIR(call, name, arguments, given) \
    int name arguments { return of_path(call, dir, path) ? -1 : NEXT(name) given; }
ON_FD("sync", fsync, (int fd), (fd))
ON_FD("sync", fdatasync, (int fd), (fd))
ON_FD("sync", syncfs, (int fd), (fd))
ON_FD("length", ftruncate, (int fd, off_t size), (fd, size))
ON_FD("length", ftruncate64, (int fd, off64_t size), (fd, size))
ON_FD("allocate", fallocate, (int fd, int mode, off_t at, off_t size), (fd, mode, at, size))
ON_FD("attributes", fchmod, (int fd, mode_t mode), (fd, mode))
ON_FD("attributes", fchown, (int fd, uid_t uid, gid_t gid), (fd, uid, gid))
/* To let go of a lock fails nowhere. */
int flock(int fd, int how) { return how != LOCK_UN && of_fd("lock", fd) ? -1 : NEXT(flock)(fd, how); }
ON_FD("stat", fstat64, (int fd, struct stat64 *out), (fd, out))
ON_FD("stat", fstat, (int fd, struct stat *out), (fd, out))
ON_PATH("stat", stat, (const char *path, struct stat *out), (path, out))
ON_PATH("stat", lstat, (const char *path, struct stat *out), (path, out))
ON_PATH("stat", stat64, (const char *path, struct stat64 *out), (path, out))
ON_PATH("stat", lstat64, (const char *path, struct stat64 *out), (path, out))
ON_DIR("stat", fstatat64, (int dir, const char *path, struct stat64 *out, int flags), (dir, path, out, flags))
ON_DIR("stat", statx, (int dir, const char *path, int flags, unsigned mask, struct statx *out),
       (dir, path, flags, mask, out))
ON_PATH("rename", rename, (const char *path, const char *to), (path, to))
ON_DIR("rename", renameat2, (int dir, const char *path, int other, const char *to, unsigned flags),
       (dir, path, other, to, flags))
ON_DIR("link", linkat, (int dir, const char *path, int other, const char *to, int flags), (dir, path, other, to, flags))
int symlink(const char *target, const char *path) {
    return of_path("link", AT_FDCWD, path) ? -1 : NEXT(symlink)(target, path);
}
ON_PATH("remove", unlink, (const char *path), (path))
ON_PATH("remove", rmdir, (const char *path), (path))
ON_DIR("remove", unlinkat, (int dir, const char *path, int flags), (dir, path, flags))
ON_PATH("mkdir", mkdir, (const char *path, mode_t mode), (path, mode))
ON_PATH("attributes", chmod, (const char *path, mode_t mode), (path, mode))
ON_PATH("attributes", lchown, (const char *path, uid_t uid, gid_t gid), (path, uid, gid))
ON_DIR("attributes", utimensat, (int dir, const char *path, const struct timespec times[2], int flags),
       (dir, path, times, flags))

off64_t lseek64(int fd, off64_t at, int whence) {
    int holes = whence == SEEK_DATA || whence == SEEK_HOLE;
    return holes && of_fd("seek", fd) ? -1 : NEXT(lseek64)(fd, at, whence);
}
off_t lseek(int fd, off_t at, int whence) {
    int holes = whence == SEEK_DATA || whence == SEEK_HOLE;
    return holes && of_fd("seek", fd) ? -1 : NEXT(lseek)(fd, at, whence);
}
DIR *opendir(const char *path) { return of_path("list", AT_FDCWD, path) ? NULL : NEXT(opendir)(path); }
struct dirent64 *readdir64(DIR *dir) { return of_fd("list", dirfd(dir)) ? NULL : NEXT(readdir64)(dir); }
