/* What a contract test needs and no more: checks that count, a directory that goes away, patterns.
 *
 * A test is a list of functions run by RUN from main, which ends with `return check_end();`. A failed check says where
 * and what, and the test goes on; the last line of output is "N passed, N failed". */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <avhdx.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(CHECK_SANITIZED) && !defined(__SANITIZE_ADDRESS__)
#error "this is meant to be built with -fsanitize=address"
#endif

static unsigned check_passed, check_failed;
static char check_dir[64];

#define CHECK(condition)                                                                        \
    do {                                                                                        \
        if (condition) {                                                                        \
            check_passed++;                                                                     \
        } else {                                                                                \
            check_failed++;                                                                     \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);             \
        }                                                                                       \
    } while (0)

#define CHECK_INT(expression, wanted)                                                           \
    do {                                                                                        \
        long long found_ = (long long)(expression), wanted_ = (long long)(wanted);              \
        if (found_ == wanted_) {                                                                \
            check_passed++;                                                                     \
        } else {                                                                                \
            check_failed++;                                                                     \
            fprintf(stderr, "%s:%d: %s is %lld, wanted %lld (%s)\n", __FILE__, __LINE__,        \
                    #expression, found_, wanted_, avhdx_error_message(NULL));                   \
        }                                                                                       \
    } while (0)

#define CHECK_OK(expression) CHECK_INT(expression, 0)

/* The call fails with -errno and the error object says the code. */
#define CHECK_FAILS(expression, errno_, code_)                                                  \
    do {                                                                                        \
        CHECK_INT(expression, -(errno_));                                                       \
        CHECK_INT(avhdx_error_code(NULL), code_);                                               \
        CHECK_INT(avhdx_error_errno(NULL), errno_);                                             \
    } while (0)

#define CHECK_STR(expression, wanted)                                                           \
    do {                                                                                        \
        const char *found_ = (expression);                                                      \
        if (found_ && strcmp(found_, wanted) == 0) {                                            \
            check_passed++;                                                                     \
        } else {                                                                                \
            check_failed++;                                                                     \
            fprintf(stderr, "%s:%d: %s is \"%s\", wanted \"%s\"\n", __FILE__, __LINE__,         \
                    #expression, found_ ? found_ : "(null)", wanted);                           \
        }                                                                                       \
    } while (0)

#define CHECK_HAS(expression, part)                                                             \
    do {                                                                                        \
        const char *found_ = (expression);                                                      \
        if (found_ && strstr(found_, part)) {                                                   \
            check_passed++;                                                                     \
        } else {                                                                                \
            check_failed++;                                                                     \
            fprintf(stderr, "%s:%d: %s is \"%s\", without \"%s\"\n", __FILE__, __LINE__,        \
                    #expression, found_ ? found_ : "(null)", part);                             \
        }                                                                                       \
    } while (0)

/* What the rest of the test cannot do without. */
#define NEED(condition)                                                                         \
    do {                                                                                        \
        if (!(condition)) {                                                                     \
            fprintf(stderr, "%s:%d: needed: %s (%s)\n", __FILE__, __LINE__, #condition,         \
                    avhdx_error_message(NULL));                                                 \
            check_failed++;                                                                     \
            exit(check_end());                                                                  \
        }                                                                                       \
    } while (0)

#define RUN(function)                                                                           \
    do {                                                                                        \
        fprintf(stderr, "# %s\n", #function);                                                   \
        function();                                                                             \
    } while (0)

static inline int check_end(void)
{
    printf("%u passed, %u failed\n", check_passed, check_failed);
    return check_failed != 0;
}

static inline void check_remove_dir(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", check_dir);
    if (system(command) != 0)
        fprintf(stderr, "cannot remove %s\n", check_dir);
}

/* A path in a directory of this test's own, made at first use. One of eight buffers in turn. */
static inline const char *tmp(const char *name)
{
    static char paths[8][256];
    static unsigned next;
    char *path = paths[next++ % 8];

    if (!check_dir[0]) {
        strcpy(check_dir, "/tmp/avhdx-test-" "XX" "XX" "XX"); /* mkdtemp() fills in six of them */
        if (!mkdtemp(check_dir)) {
            perror("mkdtemp");
            exit(1);
        }
        atexit(check_remove_dir);
    }
    snprintf(path, sizeof paths[0], "%s/%s", check_dir, name);
    return path;
}

static inline avhdx_opts *opts(const char *line)
{
    avhdx_opts *o = avhdx_opts_new();
    NEED(avhdx_opts_parse(o, line) == 0);
    return o;
}

/* avhdx_create with options in a line. */
static inline int create(const char *path, const char *line)
{
    avhdx_opts *o = opts(line);
    int r = avhdx_create(path, o);
    avhdx_opts_free(o);
    return r;
}

/* avhdx_open with options in a line; NULL after a failure. */
static inline avhdx_disk *open_with(const char *path, const char *line)
{
    avhdx_opts *o = opts(line);
    avhdx_disk *disk;
    int r = avhdx_open(&disk, path, o);
    avhdx_opts_free(o);
    return r == 0 ? disk : NULL;
}

static inline int merge_with(avhdx_disk *disk, uint32_t top, uint32_t base, const char *line)
{
    avhdx_opts *o = opts(line);
    int r = avhdx_merge(disk, top, base, o, NULL);
    avhdx_opts_free(o);
    return r;
}

static inline uint64_t check_random(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static inline void fill(unsigned char *buf, size_t len, uint64_t seed)
{
    size_t i;
    for (i = 0; i < len; i++)
        buf[i] = (unsigned char)check_random(&seed);
}

static inline int all(const unsigned char *buf, size_t len, unsigned char byte)
{
    size_t i;
    for (i = 0; i < len && buf[i] == byte; i++)
        ;
    return i == len;
}

static inline int exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

/* Number of errors avhdx_check finds; -1 when it cannot check. */
static inline long long errors_in(const char *path)
{
    struct avhdx_check seen = AVHDX_CHECK_INIT;
    return avhdx_check(path, NULL, &seen, NULL) == 0 ? (long long)seen.errors : -1;
}

#define KIB UINT64_C(1024)
#define MIB (KIB * KIB)
#define GIB (KIB * MIB)

#endif
