/* Eight threads write, zero, discard, flush, read and ask on one disk at once while others take checkpoints and merge.
 * Each owns every eighth page, in a model of its own: what it reads there must be what it wrote. */
#include "check.h"

#include <pthread.h>

#define THREADS 8
#define DISK_SIZE (24 * MIB)
#define PAGE 4096
#define PAGES (DISK_SIZE / PAGE)

static avhdx_disk *disk;
static unsigned char model[PAGES];
static unsigned rounds = 1500;

static pthread_mutex_t failures = PTHREAD_MUTEX_INITIALIZER;

static void fail(const char *what, uint64_t page)
{
    pthread_mutex_lock(&failures);
    check_failed++;
    fprintf(stderr, "%s at page %llu: %s\n", what, (unsigned long long)page, avhdx_error_message(NULL));
    pthread_mutex_unlock(&failures);
}

static void *worker(void *arg)
{
    uint64_t self = (uint64_t)(uintptr_t)arg, state = self * 77 + 1;
    unsigned char buf[PAGE];
    unsigned round;

    for (round = 0; round < rounds; round++) {
        uint64_t page = check_random(&state) % (PAGES / THREADS) * THREADS + self, at = page * PAGE;
        unsigned char byte = (unsigned char)(check_random(&state) | 1);
        struct avhdx_extent extents[4];
        struct iovec iov[2];
        uint64_t processed;
        size_t n = 4;

        switch (check_random(&state) % 10) {
        case 0:
        case 1:
        case 2:
            memset(buf, byte, PAGE);
            if (avhdx_pwrite(disk, buf, PAGE, at, round % 64 == 0 ? AVHDX_FUA : 0) < 0)
                fail("write", page);
            model[page] = byte;
            break;
        case 3:
            memset(buf, byte, PAGE);
            iov[0].iov_base = buf;
            iov[0].iov_len = 1000;
            iov[1].iov_base = buf + 1000;
            iov[1].iov_len = PAGE - 1000;
            if (avhdx_pwritev(disk, iov, 2, at, 0) < 0)
                fail("writev", page);
            model[page] = byte;
            break;
        case 4:
            if (avhdx_zero(disk, at, PAGE, round % 2 ? AVHDX_MAY_UNMAP : 0) < 0)
                fail("zero", page);
            model[page] = 0;
            break;
        case 5:
            if (round % 16 == 0 && avhdx_flush(disk) < 0)
                fail("flush", page);
            break;
        case 6:
            if (avhdx_block_status(disk, at, DISK_SIZE - at, 0, extents, &n, &processed) < 0 || n == 0
                || extents[0].offset != at)
                fail("block status", page);
            break;
        default:
            if (avhdx_pread(disk, buf, PAGE, at) < 0)
                fail("read", page);
            else if (!all(buf, PAGE, model[page]))
                fail("other bytes", page);
        }
    }
    return NULL;
}

static void *layers(void *arg)
{
    unsigned round;

    (void)arg;
    for (round = 0; round < 4; round++) {
        char name[32];
        snprintf(name, sizeof name, "cp%u.avhdx", round);
        if (avhdx_checkpoint(disk, tmp(name), NULL) < 0)
            fail("checkpoint", 0);
        usleep(5000);
        if (avhdx_layer_count(disk) > 2 && merge_with(disk, 1, 2, "") < 0)
            fail("merge below the leaf", 0);
    }
    if (merge_with(disk, 0, 1, "") < 0)
        fail("merge of the leaf", 0);
    return NULL;
}

static void run(int with_layers)
{
    pthread_t threads[THREADS + 1];
    unsigned char buf[PAGE];
    uintptr_t i;
    uint64_t page;

    for (i = 0; i < THREADS; i++)
        NEED(pthread_create(&threads[i], NULL, worker, (void *)i) == 0);
    if (with_layers)
        NEED(pthread_create(&threads[THREADS], NULL, layers, NULL) == 0);
    for (i = 0; i < THREADS + (with_layers ? 1u : 0u); i++)
        pthread_join(threads[i], NULL);
    for (page = 0; page < PAGES; page++)
        if (avhdx_pread(disk, buf, PAGE, page * PAGE) < 0 || !all(buf, PAGE, model[page]))
            fail("afterwards, other bytes", page);
        else
            check_passed++;
}

static void mixed_io(void)
{
    run(0);
}

static void mixed_io_while_layers_change(void)
{
    run(1);
    CHECK_INT(avhdx_layer_count(disk), 1);
}

static void still_there_after_reopening(void)
{
    unsigned char buf[PAGE];
    uint64_t page;

    CHECK_OK(avhdx_close(disk));
    CHECK_OK(errors_in(tmp("base.vhdx")));
    NEED((disk = open_with(tmp("base.vhdx"), "read-only")) != NULL);
    for (page = 0; page < PAGES; page++)
        if (avhdx_pread(disk, buf, PAGE, page * PAGE) < 0 || !all(buf, PAGE, model[page]))
            fail("after reopening, other bytes", page);
    CHECK_OK(avhdx_close(disk));
}

int main(void)
{
    NEED(create(tmp("base.vhdx"), "size=24M,block-size=1M") == 0);
    NEED((disk = open_with(tmp("base.vhdx"), "")) != NULL);
    if (getenv("VALGRIND_LAUNCHER") || strstr(getenv("LD_PRELOAD") ? getenv("LD_PRELOAD") : "", "vgpreload"))
        rounds = 100;
    RUN(mixed_io);
    RUN(mixed_io_while_layers_change);
    RUN(still_there_after_reopening);
    return check_end();
}
