/* The mutant that every power-loss harness must catch: syncs say yes and do nothing.
 *
 * $COWFS_SWALLOW=all   every sync of the process
 * $COWFS_SWALLOW=data  only those of data files (".../data/..."): journal and catalog stay durable, so that
 *                      only a harness which looks at the bytes of files notices
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int swallowed(int fd) {
    const char *which = getenv("COWFS_SWALLOW");
    if (!which) return 0;
    if (strcmp(which, "all") == 0) return 1;
    char link[64], target[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, target, sizeof target - 1);
    if (length < 0) return 0;
    target[length] = 0;
    return strstr(target, "/data/") != NULL;
}

int fsync(int fd) { return swallowed(fd) ? 0 : (int)syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return swallowed(fd) ? 0 : (int)syscall(SYS_fdatasync, fd); }
int syncfs(int fd) { return swallowed(fd) ? 0 : (int)syscall(SYS_syncfs, fd); }
int msync(void *at, size_t length, int flags) {
    const char *which = getenv("COWFS_SWALLOW");
    return which && strcmp(which, "all") == 0 ? 0 : (int)syscall(SYS_msync, at, length, flags);
}
/* Only a hint, but one that would quietly bring the data to the disk in time. */
int sync_file_range(int fd, off64_t offset, off64_t length, unsigned flags) {
    (void)fd, (void)offset, (void)length, (void)flags;
    return 0;
}
