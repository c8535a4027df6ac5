/* Stands between a process and libc's file calls (LD_PRELOAD): counts those under one folder, and at the N-th of them
 * kills the process, or fails the call as a broken or full disk would; on request it records what was written, for
 * replays of a power loss. Python, Arrow's C++ and every worker that a job starts pass here alike.
 *
 *   FILEFAULTS_ROOT    the folder whose files are watched
 *   FILEFAULTS_STATE   a file of sizeof(struct state), shared by all processes; see laboratory.py
 *   FILEFAULTS_LOG     the record, if one is wanted
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum fault { NONE, KILL, IO_ERROR, FULL, TORN };
enum op { OPEN = 1, CREATE, WRITE, SYNC, LINK, RENAME, UNLINK, MKDIR, RMDIR, TRUNCATE, READ, LIST };

struct state {
    _Atomic int64_t count;    /* operations so far, while enabled */
    int64_t at;               /* the operation to disturb, from 1 */
    int32_t enabled, fault;
    _Atomic int64_t injected; /* calls disturbed */
    int32_t op, unused;       /* the first of them */
    char path[512];
};

struct record { uint32_t op, flags; uint64_t inode, offset, path, other, data; };

#define LARGEST_FD 65536
static struct state *state;
static char root[4096];
static size_t root_length;
static int log_fd = -1;
static unsigned char watched[LARGEST_FD];
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("FILEFAULTS_ROOT"), *shared = getenv("FILEFAULTS_STATE"), *log = getenv("FILEFAULTS_LOG");
    if (!folder || !shared) return;
    int fd = syscall(SYS_openat, AT_FDCWD, shared, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) return;
    void *memory = mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (memory == MAP_FAILED) return;
    if (log) log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    root_length = strlen(folder);
    memcpy(root, folder, root_length + 1);
    state = memory;
}

static int is_watched(const char *path) {
    return state && path && !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static int is_open(int fd) { return state && fd >= 0 && fd < LARGEST_FD && watched[fd]; }

static const char *name_of(int fd, char *buffer) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, 4095);
    buffer[length < 0 ? 0 : length] = 0;
    return buffer;
}

/* Counts the call; 0 = go on, else it is to fail with that errno; TORN gives -1 for a write. */
static int disturbed(enum op op, const char *path) {
    if (!state->enabled) return 0;
    int64_t number = atomic_fetch_add(&state->count, 1) + 1;
    int takes_space = op == CREATE || op == WRITE || op == SYNC || op == LINK || op == RENAME || op == MKDIR;
    int hit = state->fault == FULL ? state->at && number >= state->at && takes_space : number == state->at;
    if (state->fault == NONE || !hit) return 0;
    if (!atomic_fetch_add(&state->injected, 1)) {
        state->op = op;
        strncpy(state->path, path, sizeof state->path - 1);
    }
    if (state->fault == KILL || (state->fault == TORN && op != WRITE)) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    return state->fault == TORN ? -1 : state->fault == FULL ? ENOSPC : EIO;
}

static void note(enum op op, uint32_t flags, uint64_t inode, uint64_t offset, const char *path, const char *other,
                 const void *data, size_t size) {
    if (log_fd < 0 || !state->enabled) return;
    struct record record = {op, flags, inode, offset, path ? strlen(path) : 0, other ? strlen(other) : 0, size};
    struct iovec parts[] = {{&record, sizeof record}, {(void *)path, record.path}, {(void *)other, record.other},
                            {(void *)data, size}};
    syscall(SYS_writev, log_fd, parts, 4);
}

static uint64_t inode_of(int fd) {
    struct stat found;
    return fstat(fd, &found) ? 0 : found.st_ino;
}

static int open_at(int folder, const char *path, int flags, mode_t mode) {
    if (!is_watched(path)) return syscall(SYS_openat, folder, path, flags, mode);
    enum op op = flags & O_CREAT ? CREATE : OPEN;
    int fault = disturbed(op, path);
    if (fault) { errno = fault; return -1; }
    pthread_mutex_lock(&order);
    int new = op == CREATE && syscall(SYS_faccessat, AT_FDCWD, path, F_OK) != 0;
    int fd = syscall(SYS_openat, folder, path, flags, mode);
    if (fd >= 0 && fd < LARGEST_FD) watched[fd] = 1;
    if (fd >= 0 && op == CREATE) note(CREATE, new | (flags & O_TRUNC ? 2 : 0), inode_of(fd), 0, path, NULL, NULL, 0);
    pthread_mutex_unlock(&order);
    return fd;
}

#define MODE(flags) mode_t mode = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); \
    mode = va_arg(list, mode_t); va_end(list); }
int open(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags) return open_at(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags) return open_at(folder, path, flags, mode); }
int __open_2(const char *path, int flags) { return open_at(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return open_at(AT_FDCWD, path, flags, 0); }

int close(int fd) {
    if (fd >= 0 && fd < LARGEST_FD) watched[fd] = 0;
    return syscall(SYS_close, fd);
}

DIR *opendir(const char *path) {
    static DIR *(*real)(const char *);
    if (!real) real = dlsym(RTLD_NEXT, "opendir");
    int fault = is_watched(path) ? disturbed(LIST, path) : 0;
    if (fault) { errno = fault; return NULL; }
    return real(path);
}

ssize_t read(int fd, void *buffer, size_t size) {
    char name[4096];
    int fault = is_open(fd) ? disturbed(READ, name_of(fd, name)) : 0;
    if (fault) { errno = fault; return -1; }
    return syscall(SYS_read, fd, buffer, size);
}

static ssize_t read_at(int fd, void *buffer, size_t size, off_t offset) {
    char name[4096];
    int fault = is_open(fd) ? disturbed(READ, name_of(fd, name)) : 0;
    if (fault) { errno = fault; return -1; }
    return syscall(SYS_pread64, fd, buffer, size, offset);
}
ssize_t pread(int fd, void *buffer, size_t size, off_t offset) { return read_at(fd, buffer, size, offset); }
ssize_t pread64(int fd, void *buffer, size_t size, off64_t offset) { return read_at(fd, buffer, size, offset); }

static ssize_t write_at(int fd, const void *data, size_t size, off_t offset) {
    char name[4096];
    if (!is_open(fd)) return offset < 0 ? syscall(SYS_write, fd, data, size) : syscall(SYS_pwrite64, fd, data, size, offset);
    int fault = disturbed(WRITE, name_of(fd, name));
    if (fault > 0) { errno = fault; return -1; }
    if (fault < 0) size = (size + 1) / 2;
    pthread_mutex_lock(&order);
    off_t at = offset;
    if (at < 0) at = fcntl(fd, F_GETFL) & O_APPEND ? lseek(fd, 0, SEEK_END) : lseek(fd, 0, SEEK_CUR);
    ssize_t done = offset < 0 ? syscall(SYS_write, fd, data, size) : syscall(SYS_pwrite64, fd, data, size, offset);
    if (done > 0) note(WRITE, 0, inode_of(fd), at, name, NULL, data, done);
    pthread_mutex_unlock(&order);
    if (fault < 0) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    return done;
}
ssize_t write(int fd, const void *data, size_t size) { return write_at(fd, data, size, -1); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return write_at(fd, data, size, offset); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { return write_at(fd, data, size, offset); }

static int sync_file(int fd, long call) {
    char name[4096];
    if (!is_open(fd)) return syscall(call, fd);
    int fault = disturbed(SYNC, name_of(fd, name));
    if (fault) { errno = fault; return -1; }
    pthread_mutex_lock(&order);
    int result = syscall(call, fd);
    if (!result) note(SYNC, 0, inode_of(fd), 0, name, NULL, NULL, 0);
    pthread_mutex_unlock(&order);
    return result;
}
int fsync(int fd) { return sync_file(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_file(fd, SYS_fdatasync); }

int ftruncate(int fd, off_t size) {
    char name[4096];
    if (!is_open(fd)) return syscall(SYS_ftruncate, fd, size);
    int fault = disturbed(TRUNCATE, name_of(fd, name));
    if (fault) { errno = fault; return -1; }
    pthread_mutex_lock(&order);
    int result = syscall(SYS_ftruncate, fd, size);
    if (!result) note(TRUNCATE, 0, inode_of(fd), size, name, NULL, NULL, 0);
    pthread_mutex_unlock(&order);
    return result;
}
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

/* A call that changes names: counted, done, noted. */
#define NAMES(op, path, other, call) \
    if (!is_watched(path)) return (call); \
    int fault = disturbed(op, path); \
    if (fault) { errno = fault; return -1; } \
    pthread_mutex_lock(&order); \
    int result = (call); \
    if (!result) note(op, 0, 0, 0, path, other, NULL, 0); \
    pthread_mutex_unlock(&order); \
    return result;

int linkat(int from, const char *old, int to, const char *new, int flags) {
    NAMES(LINK, new, old, syscall(SYS_linkat, from, old, to, new, flags))
}
int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }
int renameat(int from, const char *old, int to, const char *new) {
    NAMES(RENAME, new, old, syscall(SYS_renameat2, from, old, to, new, 0))
}
int rename(const char *old, const char *new) { return renameat(AT_FDCWD, old, AT_FDCWD, new); }
int unlinkat(int folder, const char *path, int flags) {
    NAMES(flags & AT_REMOVEDIR ? RMDIR : UNLINK, path, NULL, syscall(SYS_unlinkat, folder, path, flags))
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int mkdirat(int folder, const char *path, mode_t mode) {
    NAMES(MKDIR, path, NULL, syscall(SYS_mkdirat, folder, path, mode))
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
