/* Eight threads on one handle, each with sectors of its own spread over the same blocks, against a model; checkpoints
 * and a merge meanwhile. */
#include "check.h"
#include <pthread.h>
#include <stdatomic.h>

enum { THREADS = 8, SIZE_MIB = 8, SECTORS = SIZE_MIB * 2048, ROUNDS = 400 };

static avhdx_disk *disk;
/* model[s]: what sector s is filled with. Thread t owns the sectors with s % THREADS == t. */
static unsigned char model[SECTORS];
static atomic_int ready;

static unsigned next(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static void *work(void *argument)
{
    unsigned t = (unsigned)(uintptr_t)argument, random = t + 1;
    unsigned char buf[512];
    ready++;
    for (int round = 0; round < ROUNDS; round++) {
        unsigned s = next(&random) % (SECTORS / THREADS) * THREADS + t;
        switch (next(&random) % 6) {
        case 0:
        case 1:
            model[s] = (unsigned char)(next(&random) | 1);
            memset(buf, model[s], sizeof buf);
            CHECK(avhdx_pwrite(disk, buf, sizeof buf, s * 512ull, next(&random) % 32 == 0 ? AVHDX_FUA : 0) == 0);
            break;
        case 2: {
            /* Part of a sector, the same value. */
            unsigned at = next(&random) % 512;
            memset(buf, model[s], sizeof buf);
            CHECK(avhdx_pwrite(disk, buf, 512 - at, s * 512ull + at, 0) == 0);
            break;
        }
        case 3:
            model[s] = 0;
            CHECK(avhdx_zero(disk, s * 512ull, 512, AVHDX_MAY_UNMAP) == 0);
            break;
        case 4:
            if (next(&random) % 16 == 0)
                CHECK(avhdx_flush(disk) == 0);
            break;
        default: {
            struct avhdx_extent extents[4];
            size_t n = 4;
            uint64_t processed;
            CHECK(avhdx_block_status(disk, 0, SECTORS * 512ull, 0, extents, &n, &processed) == 0);
            CHECK(n >= 1 && processed > 0);
        }
        }
        CHECK(avhdx_pread(disk, buf, sizeof buf, s * 512ull) == 0);
        for (unsigned i = 0; i < sizeof buf; i++)
            CHECK(buf[i] == model[s]);
    }
    return NULL;
}

int main(void)
{
    check_start();
    make_disk("base.vhdx", SIZE_MIB);
    CHECK(avhdx_open(&disk, in_dir("base.vhdx"), NULL) == 0);
    pthread_t threads[THREADS];
    for (uintptr_t t = 0; t < THREADS; t++)
        CHECK(pthread_create(&threads[t], NULL, work, (void *)t) == 0);
    while (ready < THREADS)
        ;
    avhdx_opts *o = avhdx_opts_new();
    CHECK(avhdx_opts_parse(o, "block-size=1M") == 0);
    CHECK(avhdx_checkpoint(disk, in_dir("a.avhdx"), o) == 0);
    CHECK(avhdx_checkpoint(disk, in_dir("b.avhdx"), o) == 0);
    CHECK(avhdx_merge(disk, 1, 2, NULL, NULL) == 0);
    CHECK(avhdx_checkpoint(disk, in_dir("c.avhdx"), o) == 0);
    CHECK(avhdx_opts_parse(o, "mode=consume") == 0);
    CHECK(avhdx_merge(disk, 0, 1, o, NULL) == 0);
    avhdx_opts_free(o);
    for (int t = 0; t < THREADS; t++)
        CHECK(pthread_join(threads[t], NULL) == 0);
    for (int s = 0; s < SECTORS; s++)
        expect(disk, s * 512ull, 512, model[s]);
    char leaf[128];
    snprintf(leaf, sizeof leaf, "%s", avhdx_layer_path(disk, 0));
    CHECK(avhdx_close(disk) == 0);
    CHECK(avhdx_open(&disk, leaf, NULL) == 0);
    for (int s = 0; s < SECTORS; s++)
        expect(disk, s * 512ull, 512, model[s]);
    CHECK(avhdx_close(disk) == 0);
    return 0;
}
