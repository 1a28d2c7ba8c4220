/* Reads of one block of one file fail, as on a disk with a bad sector: BAD_FILE, BAD_BLOCK. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_bad(int fd, off64_t at, size_t bytes)
{
    const char *file = getenv("BAD_FILE"), *block = getenv("BAD_BLOCK");
    char link[64], path[PATH_MAX];
    if (!file || !block)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    off64_t from = atoll(block) * 4096;
    return !strcmp(path, file) && at < from + 4096 && at + (off64_t)bytes > from;
}

ssize_t pread64(int fd, void *into, size_t bytes, off64_t at)
{
    static ssize_t (*real)(int, void *, size_t, off64_t);
    if (!real)
        real = dlsym(RTLD_NEXT, "pread64");
    if (is_bad(fd, at, bytes)) {
        errno = EIO;
        return -1;
    }
    return real(fd, into, bytes, at);
}

ssize_t read(int fd, void *into, size_t bytes)
{
    static ssize_t (*real)(int, void *, size_t);
    if (!real)
        real = dlsym(RTLD_NEXT, "read");
    if (is_bad(fd, lseek64(fd, 0, SEEK_CUR), bytes)) {
        errno = EIO;
        return -1;
    }
    return real(fd, into, bytes);
}
