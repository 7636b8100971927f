/* Random mixed I/O on four connections to an NBD server, against a model of the disk: mixed URI OPERATIONS SEED OUT.
 * Every byte belongs to one connection, in slots that share sectors with their neighbours' in the first half of the disk
 * and whole MiB in the second. The model, which the disk must equal at the end, is written to OUT. */
#include <errno.h>
#include <inttypes.h>
#include <libnbd.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONNECTIONS 4
#define SMALL UINT64_C(10007)
#define LARGE (UINT64_C(1) << 20)

static const char *uri;
static long operations;
static uint64_t seed, size, half;
static uint8_t *model;

struct worker {
    struct nbd_handle *nbd;
    uint64_t number, state;
    long done[8];
};

static void fail(const char *what, uint64_t offset, uint64_t len)
{
    fprintf(stderr, "%s at %" PRIu64 "+%" PRIu64 ": %s\n", what, offset, len, nbd_get_error());
    exit(1);
}

static uint64_t next(struct worker *w)
{
    /* splitmix64 */
    uint64_t z = (w->state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* A range in one of the worker's slots. */
static void pick(struct worker *w, bool large, uint64_t *offset, uint64_t *len)
{
    uint64_t slot = large ? LARGE : SMALL, begin = large ? half : 0;
    uint64_t slots = (large ? size - half : half) / slot / CONNECTIONS;
    uint64_t start = begin + (next(w) % slots * CONNECTIONS + w->number) * slot;
    uint64_t skip = next(w) % 3 ? next(w) % slot : 0;

    *offset = start + skip;
    *len = next(w) % 3 ? 1 + next(w) % (slot - skip) : slot - skip;
}

static void same(const uint8_t *found, uint64_t offset, uint64_t len, const char *what)
{
    for (uint64_t i = 0; i < len; i++) {
        if (found[i] != model[offset + i]) {
            fprintf(stderr, "%s at %" PRIu64 "+%" PRIu64 ": byte %" PRIu64 " is %#x, wanted %#x\n", what, offset, len,
                    i, found[i], model[offset + i]);
            exit(1);
        }
    }
}

struct zeros {
    uint64_t start[64], len[64];
    int n;
};

static int note_zeros(void *user, const char *context, uint64_t offset, uint32_t *entries, size_t n, int *error)
{
    struct zeros *zeros = user;

    (void)error;
    if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0)
        return 0;
    for (size_t i = 0; i + 1 < n; offset += entries[i], i += 2) {
        if ((entries[i + 1] & LIBNBD_STATE_ZERO) && zeros->n < 64) {
            zeros->start[zeros->n] = offset;
            zeros->len[zeros->n++] = entries[i];
        }
    }
    return 0;
}

static void step(struct worker *w, uint8_t *buf)
{
    uint64_t offset, len, kind = next(w) % 16;
    uint32_t fua = next(w) % 8 ? 0 : LIBNBD_CMD_FLAG_FUA;
    int r;

    pick(w, next(w) % 2, &offset, &len);
    if (kind < 6) {
        memset(buf, (int)next(w), len);
        for (uint64_t i = 0; i < len; i += 512)
            buf[i] = (uint8_t)next(w);
        if (nbd_pwrite(w->nbd, buf, len, offset, fua) < 0)
            fail("write", offset, len);
        memcpy(model + offset, buf, len);
        w->done[0]++;
    } else if (kind < 11) {
        if (nbd_pread(w->nbd, buf, len, offset, 0) < 0)
            fail("read", offset, len);
        same(buf, offset, len, "read");
        w->done[1]++;
    } else if (kind == 11) {
        if (nbd_zero(w->nbd, len, offset, fua | (next(w) % 2 ? LIBNBD_CMD_FLAG_NO_HOLE : 0)) < 0)
            fail("zero", offset, len);
        memset(model + offset, 0, len);
        w->done[2]++;
    } else if (kind == 12) {
        r = nbd_zero(w->nbd, len, offset, LIBNBD_CMD_FLAG_FAST_ZERO);
        if (r < 0 && nbd_get_errno() != ENOTSUP && nbd_get_errno() != EOPNOTSUPP)
            fail("fast zero", offset, len);
        if (r == 0)
            memset(model + offset, 0, len);
        w->done[3] += r == 0;
    } else if (kind == 13) {
        if (nbd_trim(w->nbd, len, offset, fua) < 0)
            fail("trim", offset, len);
        if (nbd_pread(w->nbd, buf, len, offset, 0) < 0)
            fail("read", offset, len);
        for (uint64_t i = 0; i < len; i++)
            if (buf[i] == 0)
                model[offset + i] = 0;
        same(buf, offset, len, "trim");
        w->done[4]++;
    } else if (kind == 14) {
        struct zeros zeros = { .n = 0 };

        if (nbd_block_status(w->nbd, len, offset, (nbd_extent_callback){ .callback = note_zeros, .user_data = &zeros },
                             next(w) % 2 ? LIBNBD_CMD_FLAG_REQ_ONE : 0) < 0)
            fail("block status", offset, len);
        memset(buf, 0, len);
        for (int i = 0; i < zeros.n; i++) {
            uint64_t end = zeros.start[i] + zeros.len[i];

            /* Only what is ours: the server may answer for more. */
            end = end < offset + len ? end : offset + len;
            if (zeros.start[i] < end)
                same(buf, zeros.start[i], end - zeros.start[i], "extent that reads as zeros");
        }
        w->done[5]++;
    } else if (next(w) % 4 == 0) {
        if (nbd_flush(w->nbd, 0) < 0)
            fail("flush", 0, 0);
        w->done[6]++;
    } else {
        if (nbd_cache(w->nbd, len, offset, 0) < 0)
            fail("cache", offset, len);
        w->done[7]++;
    }
}

static struct nbd_handle *connect_to_server(void)
{
    struct nbd_handle *nbd = nbd_create();

    if (!nbd || nbd_set_strict_mode(nbd, 0) < 0 || nbd_add_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0 ||
        nbd_connect_uri(nbd, uri) < 0)
        fail("connect", 0, 0);
    return nbd;
}

static void *work(void *data)
{
    struct worker *w = data;
    uint8_t *buf = malloc(LARGE);

    w->nbd = connect_to_server();
    for (long i = 0; buf && i < operations; i++)
        step(w, buf);
    if (nbd_shutdown(w->nbd, 0) < 0)
        fail("shutdown", 0, 0);
    nbd_close(w->nbd);
    free(buf);
    return NULL;
}

int main(int argc, char **argv)
{
    static const char *const names[] = { "writes", "reads", "zeros", "fast zeros", "trims", "extents", "flushes", "caches" };
    struct worker workers[CONNECTIONS] = { { 0 } };
    pthread_t threads[CONNECTIONS];
    struct nbd_handle *nbd;
    FILE *out;

    if (argc != 5) {
        fprintf(stderr, "usage: %s URI OPERATIONS SEED OUT\n", argv[0]);
        return 2;
    }
    uri = argv[1];
    operations = atol(argv[2]);
    seed = strtoull(argv[3], NULL, 0);
    nbd = connect_to_server();
    size = (uint64_t)nbd_get_size(nbd);
    half = size / 2 / LARGE * LARGE;
    model = malloc(size);
    if (!model || size < 16 * LARGE)
        return 2;
    for (uint64_t at = 0; at < size; at += LARGE)
        if (nbd_pread(nbd, model + at, size - at < LARGE ? size - at : LARGE, at, 0) < 0)
            fail("read", at, LARGE);
    for (uint64_t i = 0; i < CONNECTIONS; i++) {
        workers[i].number = i;
        workers[i].state = seed * CONNECTIONS + i;
        if (pthread_create(&threads[i], NULL, work, &workers[i]) != 0)
            return 2;
    }
    for (int i = 0; i < CONNECTIONS; i++)
        pthread_join(threads[i], NULL);
    for (uint64_t at = 0; at < size; at += LARGE) {
        static uint8_t buf[LARGE];
        uint64_t len = size - at < LARGE ? size - at : LARGE;

        if (nbd_pread(nbd, buf, len, at, 0) < 0)
            fail("read", at, len);
        same(buf, at, len, "at the end");
    }
    nbd_shutdown(nbd, 0);
    nbd_close(nbd);
    out = fopen(argv[4], "wb");
    if (!out || fwrite(model, 1, size, out) != size || fclose(out) != 0) {
        perror(argv[4]);
        return 1;
    }
    for (int kind = 0; kind < 8; kind++) {
        long n = 0;

        for (int i = 0; i < CONNECTIONS; i++)
            n += workers[i].done[kind];
        printf("%ld %s%s", n, names[kind], kind < 7 ? ", " : "\n");
    }
    free(model);
    return 0;
}
