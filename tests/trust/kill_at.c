/* Preloaded into a process, it kills it with SIGKILL in front of its N-th call that changes files; a write that is due
   is torn: half of its bytes are written before. Armed by kill_at(N); calls_made() counts. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long at, made;

void kill_at(long number) {
    made = 0;
    at = number;
}

long calls_made(void) {
    return made;
}

static int is_due(void) {
    return at && __sync_add_and_fetch(&made, 1) == at;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int is_file(int fd) {
    struct stat status;
    return fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CALL(name, parameters, ...)                                                                                    \
    int name parameters {                                                                                              \
        if (is_due()) die();                                                                                           \
        return REAL(name)(__VA_ARGS__);                                                                                \
    }

CALL(rename, (const char *old, const char *new), old, new)
CALL(renameat, (int a, const char *old, int b, const char *new), a, old, b, new)
CALL(renameat2, (int a, const char *old, int b, const char *new, unsigned flags), a, old, b, new, flags)
CALL(unlink, (const char *path), path)
CALL(unlinkat, (int folder, const char *path, int flags), folder, path, flags)
CALL(rmdir, (const char *path), path)
CALL(mkdir, (const char *path, mode_t mode), path, mode)
CALL(mkdirat, (int folder, const char *path, mode_t mode), folder, path, mode)
CALL(link, (const char *old, const char *new), old, new)
CALL(linkat, (int a, const char *old, int b, const char *new, int flags), a, old, b, new, flags)
CALL(symlink, (const char *old, const char *new), old, new)
CALL(fsync, (int fd), fd)
CALL(fdatasync, (int fd), fd)
CALL(ftruncate, (int fd, off_t size), fd, size)
CALL(ftruncate64, (int fd, off64_t size), fd, size)

#define WRITE(name, parameters, half, ...)                                                                       \
    ssize_t name parameters {                                                                                          \
        if (is_file(fd) && is_due()) {                                                                                 \
            (void)!half;                                                                                               \
            die();                                                                                                     \
        }                                                                                                              \
        return REAL(name)(__VA_ARGS__);                                                                                \
    }

WRITE(write, (int fd, const void *data, size_t size), REAL(write)(fd, data, size / 2), fd, data, size)
WRITE(pwrite, (int fd, const void *data, size_t size, off_t from), REAL(pwrite)(fd, data, size / 2, from), fd, data, size, from)
WRITE(pwrite64, (int fd, const void *data, size_t size, off64_t from), REAL(pwrite64)(fd, data, size / 2, from), fd, data, size, from)
WRITE(writev, (int fd, const struct iovec *parts, int count), REAL(writev)(fd, parts, count / 2), fd, parts, count)

#define OPEN(name, parameters, last, ...)                                                                              \
    int name parameters {                                                                                              \
        mode_t mode = 0;                                                                                               \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                                           \
            va_list rest;                                                                                              \
            va_start(rest, last);                                                                                      \
            mode = va_arg(rest, mode_t);                                                                               \
            va_end(rest);                                                                                              \
        }                                                                                                              \
        if (flags & (O_CREAT | O_TRUNC) && is_due()) die();                                                            \
        return REAL(name)(__VA_ARGS__, mode);                                                                          \
    }

OPEN(open, (const char *path, int flags, ...), flags, path, flags)
OPEN(open64, (const char *path, int flags, ...), flags, path, flags)
OPEN(openat, (int folder, const char *path, int flags, ...), flags, folder, path, flags)
OPEN(openat64, (int folder, const char *path, int flags, ...), flags, folder, path, flags)
