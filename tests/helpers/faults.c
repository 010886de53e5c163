/* Makes the system refuse: from the n-th call on that changes a file below one folder, every such call fails.
 *
 * Preloaded into a process (LD_PRELOAD), so that it stands below Python, Rust and C++ alike. Nothing happens until
 * faults_arm; faults_calls says how many such calls were made since. ENOSPC: only calls that need room fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static size_t root_length;
static long first, seen;
static int refusal;

void faults_arm(const char *folder, long from, int number) {
    snprintf(root, sizeof root, "%s/", folder);
    root_length = strlen(root);
    first = from;
    refusal = number;
    __atomic_store_n(&seen, 0, __ATOMIC_SEQ_CST);
}

long faults_calls(void) { return __atomic_load_n(&seen, __ATOMIC_SEQ_CST); }

static int refused(void) {
    if (__atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST) < first || !refusal) return 0;
    errno = refusal;
    return 1;
}

/* needs_room: whether a full disk refuses it too. */
static int hits_path(int at, const char *path, int needs_room) {
    char whole[2 * PATH_MAX], link[64];
    if (!root_length || (refusal == ENOSPC && !needs_room) || !path) return 0;
    if (path[0] == '/') {
        snprintf(whole, sizeof whole, "%s", path);
    } else {
        ssize_t length = 0;
        if (at == AT_FDCWD) {
            if (!getcwd(whole, PATH_MAX)) return 0;
            length = (ssize_t)strlen(whole);
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
            length = readlink(link, whole, PATH_MAX);
            if (length < 0) return 0;
        }
        snprintf(whole + length, sizeof whole - (size_t)length, "/%s", path);
    }
    return strncmp(whole, root, root_length) == 0 && refused();
}

static int hits_file(int file, int needs_room) {
    char link[64], path[PATH_MAX];
    if (!root_length || (refusal == ENOSPC && !needs_room)) return 0;
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0) return 0;
    path[length] = 0;
    return strncmp(path, root, root_length) == 0 && refused();
}

#define REAL(type, name, ...)                                                                                         \
    static type (*real)(__VA_ARGS__);                                                                                 \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define ON_FILE(type, name, needs_room, arguments, call, ...)                                                         \
    type name arguments {                                                                                             \
        REAL(type, #name, __VA_ARGS__);                                                                               \
        return hits_file(file, needs_room) ? -1 : real call;                                                          \
    }
#define ON_PATH(name, at, needs_room, arguments, call, ...)                                                           \
    int name arguments {                                                                                              \
        REAL(int, #name, __VA_ARGS__);                                                                                \
        return hits_path(at, path, needs_room) ? -1 : real call;                                                      \
    }

ON_FILE(ssize_t, write, 1, (int file, const void *data, size_t n), (file, data, n), int, const void *, size_t)
ON_FILE(ssize_t, pwrite, 1, (int file, const void *data, size_t n, off_t at), (file, data, n, at), int, const void *,
        size_t, off_t)
ON_FILE(ssize_t, pwrite64, 1, (int file, const void *data, size_t n, off64_t at), (file, data, n, at), int,
        const void *, size_t, off64_t)
ON_FILE(ssize_t, writev, 1, (int file, const struct iovec *rows, int n), (file, rows, n), int, const struct iovec *,
        int)
ON_FILE(ssize_t, sendfile, 1, (int file, int from, off_t *at, size_t n), (file, from, at, n), int, int, off_t *,
        size_t)
ON_FILE(ssize_t, sendfile64, 1, (int file, int from, off64_t *at, size_t n), (file, from, at, n), int, int, off64_t *,
        size_t)
ON_FILE(int, ftruncate, 1, (int file, off_t size), (file, size), int, off_t)
ON_FILE(int, ftruncate64, 1, (int file, off64_t size), (file, size), int, off64_t)
ON_FILE(int, fsync, 1, (int file), (file), int)
ON_FILE(int, fdatasync, 1, (int file), (file), int)

ssize_t copy_file_range(int from, off64_t *at, int file, off64_t *to, size_t n, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    return hits_file(file, 1) ? -1 : real(from, at, file, to, n, flags);
}
int posix_fallocate(int file, off_t start, off_t size) { /* returns its error */
    REAL(int, "posix_fallocate", int, off_t, off_t);
    return hits_file(file, 1) ? errno : real(file, start, size);
}
int posix_fallocate64(int file, off64_t start, off64_t size) {
    REAL(int, "posix_fallocate64", int, off64_t, off64_t);
    return hits_file(file, 1) ? errno : real(file, start, size);
}

ON_PATH(mkdir, AT_FDCWD, 1, (const char *path, mode_t mode), (path, mode), const char *, mode_t)
ON_PATH(rmdir, AT_FDCWD, 0, (const char *path), (path), const char *)
ON_PATH(unlink, AT_FDCWD, 0, (const char *path), (path), const char *)
ON_PATH(unlinkat, at, 0, (int at, const char *path, int flags), (at, path, flags), int, const char *, int)
ON_PATH(mkdirat, at, 1, (int at, const char *path, mode_t mode), (at, path, mode), int, const char *, mode_t)

int rename(const char *old, const char *path) {
    REAL(int, "rename", const char *, const char *);
    return hits_path(AT_FDCWD, path, 1) ? -1 : real(old, path);
}
int renameat(int from, const char *old, int at, const char *path) {
    REAL(int, "renameat", int, const char *, int, const char *);
    return hits_path(at, path, 1) ? -1 : real(from, old, at, path);
}
int link(const char *old, const char *path) {
    REAL(int, "link", const char *, const char *);
    return hits_path(AT_FDCWD, path, 1) ? -1 : real(old, path);
}
int symlink(const char *old, const char *path) {
    REAL(int, "symlink", const char *, const char *);
    return hits_path(AT_FDCWD, path, 1) ? -1 : real(old, path);
}

static mode_t mode_of(int flags, va_list more) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; }

#define OPENING(name)                                                                                                 \
    int name(const char *path, int flags, ...) {                                                                      \
        REAL(int, #name, const char *, int, ...);                                                                     \
        va_list more;                                                                                                 \
        va_start(more, flags);                                                                                        \
        mode_t mode = mode_of(flags, more);                                                                           \
        va_end(more);                                                                                                 \
        return (flags & O_CREAT) && hits_path(AT_FDCWD, path, 1) ? -1 : real(path, flags, mode);                      \
    }
#define OPENING_AT(name)                                                                                              \
    int name(int at, const char *path, int flags, ...) {                                                              \
        REAL(int, #name, int, const char *, int, ...);                                                                \
        va_list more;                                                                                                 \
        va_start(more, flags);                                                                                        \
        mode_t mode = mode_of(flags, more);                                                                           \
        va_end(more);                                                                                                 \
        return (flags & O_CREAT) && hits_path(at, path, 1) ? -1 : real(at, path, flags, mode);                        \
    }
OPENING(open)
OPENING(open64)
OPENING_AT(openat)
OPENING_AT(openat64)

FILE *fopen(const char *path, const char *mode) {
    REAL(FILE *, "fopen", const char *, const char *);
    return mode[0] != 'r' && hits_path(AT_FDCWD, path, 1) ? NULL : real(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    REAL(FILE *, "fopen64", const char *, const char *);
    return mode[0] != 'r' && hits_path(AT_FDCWD, path, 1) ? NULL : real(path, mode);
}
