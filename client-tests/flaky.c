/* To be loaded before a program: its calls on files are done by halves and interrupted, as a kernel may. What it did goes
 * to the file named by FLAKY_LOG: halves, interruptions. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>

static atomic_ulong calls, halves, interruptions;

/* Every third call. */
static int interrupted(void)
{
    if (atomic_fetch_add(&calls, 1) % 3 != 2)
        return 0;
    atomic_fetch_add(&interruptions, 1);
    errno = EINTR;
    return 1;
}

static size_t part(size_t len)
{
    if (len < 2)
        return len;
    atomic_fetch_add(&halves, 1);
    return len / 2;
}

#define REAL(name) (__extension__(__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pread64(int fd, void *buf, size_t len, off64_t at)
{
    return interrupted() ? -1 : REAL(pread64)(fd, buf, part(len), at);
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t at)
{
    return interrupted() ? -1 : REAL(pwrite64)(fd, buf, part(len), at);
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t len, unsigned flags)
{
    return interrupted() ? -1 : REAL(copy_file_range)(in, from, out, to, part(len), flags);
}

int fdatasync(int fd)
{
    return interrupted() ? -1 : REAL(fdatasync)(fd);
}

int fsync(int fd)
{
    return interrupted() ? -1 : REAL(fsync)(fd);
}

int ftruncate64(int fd, off64_t len)
{
    return interrupted() ? -1 : REAL(ftruncate64)(fd, len);
}

int fallocate(int fd, int mode, off_t at, off_t len)
{
    return interrupted() ? -1 : REAL(fallocate)(fd, mode, at, len);
}

__attribute__((destructor)) static void tell(void)
{
    const char *name = getenv("FLAKY_LOG");
    FILE *file = name ? fopen(name, "a") : NULL;

    if (!file)
        return;
    fprintf(file, "%lu %lu\n", (unsigned long)halves, (unsigned long)interruptions);
    fclose(file);
}
