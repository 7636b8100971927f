/* Requests: ranges, flags, vectors, zeroing, discarding, the page cache; abort loses what was not flushed and nothing
 * else. */
#define _GNU_SOURCE
#include "check.h"

#include <fcntl.h>

static avhdx_disk *disk;

static void range_leaves_buffers_alone(void)
{
    unsigned char buf[1024];
    struct iovec iov[2];

    memset(buf, 0xcc, sizeof buf);
    CHECK_FAILS(avhdx_pread(disk, buf, 1024, 16 * MIB - 512), EINVAL, AVHDX_ERR_RANGE);
    CHECK_FAILS(avhdx_pread(disk, buf, 1024, UINT64_MAX - 511), EINVAL, AVHDX_ERR_RANGE);
    CHECK_FAILS(avhdx_pread(disk, buf, SIZE_MAX, 0), EINVAL, AVHDX_ERR_RANGE);
    CHECK_FAILS(avhdx_pread(disk, buf, SIZE_MAX / 2, 0), EINVAL, AVHDX_ERR_RANGE);
    CHECK_FAILS(avhdx_pwrite(disk, buf, 1024, 16 * MIB - 512, 0), EINVAL, AVHDX_ERR_RANGE);
    CHECK_FAILS(avhdx_zero(disk, 16 * MIB, 1, 0), EINVAL, AVHDX_ERR_RANGE);
    CHECK_FAILS(avhdx_zero(disk, 1, UINT64_MAX, 0), EINVAL, AVHDX_ERR_RANGE);
    CHECK_FAILS(avhdx_discard(disk, 0, 16 * MIB + 1, 0), EINVAL, AVHDX_ERR_RANGE);
    /* A vector whose second part is outside leaves the first alone too. */
    iov[0].iov_base = buf;
    iov[0].iov_len = 512;
    iov[1].iov_base = buf + 512;
    iov[1].iov_len = 512;
    CHECK_FAILS(avhdx_preadv(disk, iov, 2, 16 * MIB - 512), EINVAL, AVHDX_ERR_RANGE);
    CHECK_FAILS(avhdx_pwritev(disk, iov, 2, 16 * MIB - 512, 0), EINVAL, AVHDX_ERR_RANGE);
    iov[1].iov_len = SIZE_MAX - 100;
    CHECK_FAILS(avhdx_preadv(disk, iov, 2, 0), EINVAL, AVHDX_ERR_RANGE);
    CHECK_FAILS(avhdx_pwritev(disk, iov, 2, 0, 0), EINVAL, AVHDX_ERR_RANGE);
    CHECK_FAILS(avhdx_preadv(disk, iov, -1, 0), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK(all(buf, sizeof buf, 0xcc));
    CHECK_OK(avhdx_pread(disk, buf, 512, 16 * MIB - 512));
    CHECK(all(buf, 512, 0));
    /* Nothing at the very end is inside. */
    CHECK_OK(avhdx_pread(disk, buf, 0, 16 * MIB));
}

static void unknown_flags(void)
{
    unsigned char byte = 1;

    CHECK_FAILS(avhdx_pwrite(disk, &byte, 1, 0, 0x80), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_HAS(avhdx_error_message(NULL), "0x80");
    CHECK_FAILS(avhdx_pwrite(disk, &byte, 1, 0, AVHDX_MAY_UNMAP), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_zero(disk, 0, 1, AVHDX_ONE), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_discard(disk, 0, 1, AVHDX_FAST), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_OK(avhdx_pread(disk, &byte, 1, 0));
    CHECK_INT(byte, 0);
}

static void vectors_of_any_shape(void)
{
    static unsigned char from[3 << 20], to[3 << 20];
    uint64_t state = 5;
    int round;

    for (round = 0; round < 60; round++) {
        struct iovec iov[160];
        size_t len = 0;
        uint64_t at = check_random(&state) % (12 * MIB);
        int n = 1 + (int)(check_random(&state) % (round % 7 ? 160 : 32)), i;

        fill(from, sizeof from, state);
        for (i = 0; i < n; i++) {
            size_t part = check_random(&state) % (round % 7 ? 3000 : 90000);
            iov[i].iov_base = part ? from + len : NULL;
            iov[i].iov_len = part;
            len += part;
        }
        CHECK_OK(avhdx_pwritev(disk, iov, n, at, round % 5 ? 0 : AVHDX_FUA));
        CHECK_OK(avhdx_pread(disk, to, len, at));
        CHECK(memcmp(from, to, len) == 0);
        memset(to, 0, sizeof to);
        for (i = 0; i < n; i++)
            if (iov[i].iov_base)
                iov[i].iov_base = to + ((unsigned char *)iov[i].iov_base - from);
        CHECK_OK(avhdx_preadv(disk, iov, n, at));
        CHECK(memcmp(from, to, len) == 0);
    }
}

static void zero_and_discard(void)
{
    static unsigned char buf[4 << 20];

    fill(buf, sizeof buf, 8);
    CHECK_OK(avhdx_pwrite(disk, buf, sizeof buf, 0, 0));
    CHECK_OK(avhdx_zero(disk, 1000, 5000, AVHDX_FUA));
    CHECK_OK(avhdx_pread(disk, buf, 7000, 0));
    CHECK(all(buf + 1000, 5000, 0) && !all(buf, 1000, 0) && !all(buf + 6000, 1000, 0));
    CHECK_FAILS(avhdx_zero(disk, 1, 5000, AVHDX_FAST), ENOTSUP, AVHDX_ERR_NOT_FAST);
    CHECK_OK(avhdx_zero(disk, MIB, MIB, AVHDX_FAST | AVHDX_MAY_UNMAP));
    CHECK_OK(avhdx_discard(disk, 2 * MIB, MIB, 0));
    CHECK_OK(avhdx_pread(disk, buf, 3 * MIB, MIB));
    CHECK(all(buf, 2 * MIB, 0) && !all(buf + 2 * MIB, MIB, 0));
}

static void abort_keeps_what_was_flushed(void)
{
    unsigned char buf[4096];

    memset(buf, 0x11, sizeof buf);
    CHECK_OK(avhdx_pwrite(disk, buf, sizeof buf, 5 * MIB, 0));
    CHECK_OK(avhdx_flush(disk));
    memset(buf, 0x22, sizeof buf);
    CHECK_OK(avhdx_pwrite(disk, buf, sizeof buf, 6 * MIB, 0));
    avhdx_abort(disk);
    NEED((disk = open_with(tmp("d.vhdx"), "")) != NULL);
    CHECK_OK(avhdx_pread(disk, buf, sizeof buf, 5 * MIB));
    CHECK(all(buf, sizeof buf, 0x11));
}

/* The same bytes through the page cache and around it, from aligned memory and not. */
static void around_the_page_cache(void)
{
    static _Alignas(4096) unsigned char wrote[2 << 20], got[2 << 20];
    struct range {
        size_t skip, len;
        uint64_t at;
    } ranges[] = {{0, MIB, 9 * MIB}, {1, 70000, 3 * MIB + 512}, {7, 333, 11 * MIB - 100}, {0, 4096, 8 * MIB}};

    fill(wrote, sizeof wrote, 21);
    CHECK_OK(avhdx_close(disk));
    if (!(disk = open_with(tmp("d.vhdx"), "cache=none"))) {
        CHECK_INT(avhdx_error_code(NULL), AVHDX_ERR_IO);
        CHECK(strstr(avhdx_error_hint(NULL), "cache") != NULL);
        fprintf(stderr, "SKIPPED: this file system has no O_DIRECT\n");
        NEED((disk = open_with(tmp("d.vhdx"), "")) != NULL);
        return;
    }
    CHECK((fcntl(avhdx_layer_fd(disk, 0), F_GETFL) & O_DIRECT) != 0);
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        struct range *r = &ranges[i];
        CHECK_OK(avhdx_pwrite(disk, wrote + r->skip, r->len, r->at, 0));
        CHECK_OK(avhdx_pread(disk, got, r->len, r->at));
        CHECK(memcmp(got, wrote + r->skip, r->len) == 0);
    }
    CHECK_OK(avhdx_close(disk));
    CHECK_OK(errors_in(tmp("d.vhdx")));
    NEED((disk = open_with(tmp("d.vhdx"), "")) != NULL);
    CHECK((fcntl(avhdx_layer_fd(disk, 0), F_GETFL) & O_DIRECT) == 0);
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        struct range *r = &ranges[i];
        CHECK_OK(avhdx_pread(disk, got, r->len, r->at));
        CHECK(memcmp(got, wrote + r->skip, r->len) == 0);
    }
}

static void read_only(void)
{
    unsigned char byte = 1;
    struct stat before, after;

    CHECK_OK(avhdx_close(disk));
    CHECK_OK(errors_in(tmp("d.vhdx")));
    NEED(stat(tmp("d.vhdx"), &before) == 0);
    NEED((disk = open_with(tmp("d.vhdx"), "read-only")) != NULL);
    CHECK_FAILS(avhdx_pwrite(disk, &byte, 1, 0, 0), EROFS, AVHDX_ERR_READ_ONLY);
    CHECK_FAILS(avhdx_zero(disk, 0, 1, 0), EROFS, AVHDX_ERR_READ_ONLY);
    CHECK_FAILS(avhdx_discard(disk, 0, MIB, 0), EROFS, AVHDX_ERR_READ_ONLY);
    CHECK_FAILS(avhdx_checkpoint(disk, tmp("c.avhdx"), NULL), EROFS, AVHDX_ERR_READ_ONLY);
    CHECK_OK(avhdx_flush(disk));
    CHECK_OK(avhdx_close(disk));
    NEED(stat(tmp("d.vhdx"), &after) == 0);
    CHECK(before.st_mtim.tv_sec == after.st_mtim.tv_sec && before.st_mtim.tv_nsec == after.st_mtim.tv_nsec);
}

int main(void)
{
    NEED(create(tmp("d.vhdx"), "size=16M,block-size=1M") == 0);
    NEED((disk = open_with(tmp("d.vhdx"), "")) != NULL);
    RUN(range_leaves_buffers_alone);
    RUN(unknown_flags);
    RUN(vectors_of_any_shape);
    RUN(zero_and_discard);
    RUN(abort_keeps_what_was_flushed);
    RUN(around_the_page_cache);
    RUN(read_only);
    return check_end();
}
