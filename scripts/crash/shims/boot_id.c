/* Gives a process the boot id that lies in the file $COWFS_FAKE_BOOT_ID.
 *
 * A loop filesystem that is shut down and mounted again has lost what a power cut loses, but the machine has not
 * booted: cowfs would still trust its volatile log, which on a real machine would be ignored. With a new id after
 * each cut it behaves as it would after the real thing.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *redirected(const char *path) {
    const char *fake = getenv("COWFS_FAKE_BOOT_ID");
    return fake && path && strcmp(path, "/proc/sys/kernel/random/boot_id") == 0 ? fake : path;
}

#define OPEN(NAME, EXTRA)                                                                            \
    int NAME(const char *path, int flags, ...) {                                                     \
        va_list rest;                                                                                \
        va_start(rest, flags);                                                                       \
        int mode = va_arg(rest, int);                                                                \
        va_end(rest);                                                                                \
        return (int)syscall(SYS_openat, AT_FDCWD, redirected(path), flags | (EXTRA), mode);          \
    }

OPEN(open, 0)
OPEN(open64, O_LARGEFILE)
