/* Mutants that scripts/crash-points must catch: cowfs with one step of its order left out or turned round.
 *
 * $COWFS_BREAK=volatile        frames of the volatile log are never written
 * $COWFS_BREAK=logs-first      a layer's logs are removed before its index is written
 * $COWFS_BREAK=index-in-place  an index is written under its final name, not renamed into place
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int broken(const char *how) {
    const char *which = getenv("COWFS_BREAK");
    return which && strcmp(which, how) == 0;
}

static int ends_with(const char *path, const char *end) {
    size_t length = strlen(path), wanted = strlen(end);
    return length >= wanted && strcmp(path + length - wanted, end) == 0;
}

/* The path of a file beside PATH. */
static void beside(const char *path, const char *name, char out[4096]) {
    const char *slash = strrchr(path, '/');
    snprintf(out, 4096, "%.*s/%s", (int)(slash - path), path, name);
}

static int open_broken(const char *path, int flags, int mode) {
    char other[4096];
    if (flags & O_CREAT && ends_with(path, "/index.tmp")) {
        if (broken("logs-first")) {
            beside(path, "journal", other);
            unlink(other);
            beside(path, "volatile", other);
            unlink(other);
        } else if (broken("index-in-place")) {
            beside(path, "index", other);
            path = other;
        }
    }
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

#define OPEN(NAME, EXTRA)                                                                            \
    int NAME(const char *path, int flags, ...) {                                                     \
        va_list rest;                                                                                \
        va_start(rest, flags);                                                                       \
        int mode = va_arg(rest, int);                                                                \
        va_end(rest);                                                                                \
        return open_broken(path, flags | (EXTRA), mode);                                             \
    }

OPEN(open, 0)
OPEN(open64, O_LARGEFILE)

int rename(const char *from, const char *to) {
    if (broken("index-in-place") && ends_with(from, "/index.tmp")) return 0;
    return (int)syscall(SYS_rename, from, to);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) {
    char link[64], target[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (offset > 0 && broken("volatile")) {
        ssize_t known = readlink(link, target, sizeof target - 1);
        target[known > 0 ? known : 0] = 0;
        if (ends_with(target, "/volatile")) return (ssize_t)length;
    }
    return syscall(SYS_pwrite64, fd, data, length, offset);
}
