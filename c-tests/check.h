/* What the tests need: a check that says where, a directory of their own, a chain. */
#ifndef CHECK_H
#define CHECK_H

#include <avhdx.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef EXPECT_SANITIZER
#if !defined(__SANITIZE_ADDRESS__)
#error "built to be sanitized, and is not"
#endif
int __asan_address_is_poisoned(const volatile void *address);
#endif

#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            const avhdx_error *e_ = avhdx_last_error();                                           \
            const char *cause_ = avhdx_error_cause(e_);                                           \
            fprintf(stderr, "%s:%d: %s\n  last error: %s: %s\n", __FILE__, __LINE__, #condition,  \
                    avhdx_error_message(e_), cause_ ? cause_ : "");                               \
            abort();                                                                              \
        }                                                                                         \
    } while (0)

/* The call fails with this errno and code. */
#define CHECK_FAILS(call, err, error_code)                          \
    do {                                                            \
        CHECK((call) == -(err));                                    \
        CHECK(avhdx_error_code(avhdx_last_error()) == (error_code)); \
    } while (0)

#define MIB (1024u * 1024u)

static char check_directory[64];

static inline void check_remove(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", check_directory);
    if (system(command) != 0)
        perror("rm");
}

/* A fresh directory, removed at exit. */
static inline void check_start(void)
{
#ifdef EXPECT_SANITIZER
    CHECK(!__asan_address_is_poisoned(check_directory));
#endif
    strcpy(check_directory, "/tmp/avhdx-test-XXXXXX");
    CHECK(mkdtemp(check_directory) != NULL);
    atexit(check_remove);
}

/* A path in it. Four may be in use at once. */
static inline const char *in_dir(const char *name)
{
    static _Thread_local char paths[4][128];
    static _Thread_local unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", check_directory, name);
    return path;
}

/* A dynamic disk of size MiB with blocks of 1 MiB. */
static inline void make_disk(const char *name, unsigned mib)
{
    char line[64];
    avhdx_opts *o = avhdx_opts_new();
    snprintf(line, sizeof line, "size=%uM,block-size=1M", mib);
    CHECK(avhdx_opts_parse(o, line) == 0);
    CHECK(avhdx_create(in_dir(name), o) == 0);
    avhdx_opts_free(o);
}

static inline void fill(avhdx_disk *d, uint64_t offset, size_t len, int byte)
{
    unsigned char *buf = malloc(len);
    CHECK(buf != NULL);
    memset(buf, byte, len);
    CHECK(avhdx_pwrite(d, buf, len, offset, 0) == 0);
    free(buf);
}

/* Every byte of the range is this one. */
static inline void expect(avhdx_disk *d, uint64_t offset, size_t len, int byte)
{
    unsigned char *buf = malloc(len);
    CHECK(buf != NULL);
    CHECK(avhdx_pread(d, buf, len, offset) == 0);
    for (size_t i = 0; i < len; i++)
        if (buf[i] != byte) {
            fprintf(stderr, "byte %llu is %#x, wanted %#x\n", (unsigned long long)(offset + i), buf[i], byte);
            abort();
        }
    free(buf);
}

#endif
