/* Reading and writing, beside pread and pwrite on the plain file of the same content. */
#define _GNU_SOURCE
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define SIZE (1 * GIB)
#define PIECE (64 * KIB)

/* ---- Disks ---- */

/* All of the disk written, then in each of the layers above 64 pieces of 64 KiB here and there. Leaf and raw file. */
static void scattered(int depth, const char *leaf, const char *raw)
{
    struct random random = {3};
    char name[512];
    snprintf(name, sizeof name, "%s-1.vhdx", leaf);
    disk_create(depth == 1 ? leaf : name, "size=1G,block-size=2M");
    avhdx_disk *disk = disk_open(depth == 1 ? leaf : name, "cache=unsafe");
    disk_fill(disk, 0, SIZE);
    for (int layer = 2; layer <= depth; layer++) {
        snprintf(name, sizeof name, "%s-%d.avhdx", leaf, layer);
        disk_checkpoint(disk, layer == depth ? leaf : name);
        for (int i = 0; i < 64; i++)
            disk_fill(disk, random_below(&random, SIZE / PIECE) * PIECE, PIECE);
    }
    disk_to_raw(disk, raw);
    disk_close(disk);
}

/* A base with all of the data, and empty layers above it. */
static void empty_layers(int depth, const char *leaf)
{
    char name[512];
    snprintf(name, sizeof name, "%s-1.vhdx", leaf);
    disk_create(name, "size=1G,block-size=2M");
    avhdx_disk *disk = disk_open(name, "cache=unsafe");
    disk_fill(disk, 0, SIZE);
    for (int layer = 2; layer <= depth; layer++) {
        snprintf(name, sizeof name, "%s-%d.avhdx", leaf, layer);
        disk_checkpoint(disk, layer == depth ? leaf : name);
    }
    disk_close(disk);
}

/* Eight layers, each with every third 4 KiB of the disk, at random: the owner changes with almost every 4 KiB. */
static void shredded(const char *leaf, const char *raw)
{
    struct random random = {5};
    char name[512];
    snprintf(name, sizeof name, "%s-1.vhdx", leaf);
    disk_create(name, "size=256M,block-size=2M");
    avhdx_disk *disk = disk_open(name, "cache=unsafe");
    disk_fill(disk, 0, 256 * MIB);
    for (int layer = 2; layer <= 8; layer++) {
        snprintf(name, sizeof name, "%s-%d.avhdx", leaf, layer);
        disk_checkpoint(disk, layer == 8 ? leaf : name);
        for (uint64_t at = 0; at < 256 * MIB; at += 4 * KIB)
            if (random_below(&random, 3) == 0)
                disk_fill(disk, at, 4 * KIB);
    }
    disk_to_raw(disk, raw);
    disk_close(disk);
}

/* ---- One measurement ---- */

/* Where bytes of a disk are. */
struct place {
    int fd;
    off_t at;
};

/* What is read or written: a disk, a plain file, or for each piece of a disk its place in some file. */
struct subject {
    const struct place *places;
    uint64_t piece;
    avhdx_disk *disk;
    int fd;
    uint64_t size, unit, count;
    bool random, write;
    /* Not in the page cache; or read into it before every round, since some places of memory are faster than others. */
    bool cold, read_in;
    /* Make durable after so many, 0 for never; with so many fdatasyncs where the subject is a file. */
    uint64_t flush, syncs;
    uint64_t seed;
    /* Which of the buffers. */
    int thread;
};

#define MOST_THREADS 8
static _Alignas(4096) char buffers[MOST_THREADS][MIB];

/* One pread for each run that is contiguous in a file. */
static bool read_places(const struct subject *s, char *buf, uint64_t offset)
{
    for (uint64_t done = 0; done < s->unit;) {
        const struct place *first = &s->places[(offset + done) / s->piece], *next = first + 1;
        uint64_t len = s->piece;
        for (; done + len < s->unit && next->fd == first->fd && next->at == first->at + (off_t)len; next++)
            len += s->piece;
        if (pread(first->fd, buf + done, len, first->at) != (ssize_t)len)
            return false;
        done += len;
    }
    return true;
}

static void run(void *arg)
{
    const struct subject *s = arg;
    char *buf = buffers[s->thread];
    if (s->write && !buf[0])
        memset(buf, 7, s->unit);
    struct random random = {s->seed + 11};
    uint64_t places = s->size / s->unit;
    for (uint64_t i = 0; i < s->count; i++) {
        uint64_t at = (s->random ? random_below(&random, places) : (s->seed * s->count + i) % places) * s->unit;
        bool ok;
        if (s->places)
            ok = read_places(s, buf, at);
        else if (s->disk)
            ok = (s->write ? avhdx_pwrite(s->disk, buf, s->unit, at, 0) : avhdx_pread(s->disk, buf, s->unit, at)) == 0;
        else
            ok = (s->write ? pwrite(s->fd, buf, s->unit, (off_t)at) : pread(s->fd, buf, s->unit, (off_t)at)) ==
                 (ssize_t)s->unit;
        if (ok && s->flush && (i + 1) % s->flush == 0) {
            if (s->disk)
                ok = avhdx_flush(s->disk) == 0;
            else
                for (uint64_t n = 0; n < s->syncs; n++)
                    ok = ok && fdatasync(s->fd) == 0;
        }
        if (!ok) {
            fprintf(stderr, "%s at %llu: %s\n", s->disk ? "disk" : "file", (unsigned long long)at,
                    s->disk ? avhdx_error_message(NULL) : strerror(errno));
            exit(2);
        }
    }
}

static double taken(struct subject *s)
{
    if (s->cold && s->disk)
        disk_forget(s->disk);
    else if (s->cold)
        file_forget(s->fd);
    return timed(run, s);
}

static void read_in(const struct subject *s)
{
    if (s->read_in && s->disk)
        disk_read_in(s->disk);
    else if (s->read_in)
        file_read_in(s->fd);
}

/* Turns in a round. */
#define TURNS 16

/* The rate of `a` in units of the rate of `b`; the first round only warms up. In each round they take turns, so that what
 * else the machine does meets both. */
static double compare(struct row *row, struct subject *a, struct subject *b)
{
    struct subject part_a = *a, part_b = *b;
    part_a.count /= TURNS;
    part_b.count /= TURNS;
    sync();
    for (int round = 0; round <= rounds; round++) {
        double of_a = 0, of_b = 0;
        memory_fill();
        read_in(a);
        read_in(b);
        for (int turn = 0; turn < TURNS; turn++) {
            part_a.seed = part_b.seed = (uint64_t)(round * TURNS + turn);
            if (turn % 2) {
                of_a += taken(&part_a);
                of_b += taken(&part_b);
            } else {
                of_b += taken(&part_b);
                of_a += taken(&part_a);
            }
        }
        if (round)
            row_add(row, of_b / of_a);
    }
    return row_end(row);
}

static int raw_open(const char *path, int flags)
{
    int fd = open(path, O_RDWR | O_CLOEXEC | flags);
    need_sys(fd >= 0, path);
    return fd;
}

/* A disk and the plain file of the same content. */
struct beside {
    avhdx_disk *disk;
    int fd;
};

static struct beside beside_open(const char *leaf, const char *options, const char *raw, int flags)
{
    return (struct beside){disk_open(leaf, options), raw_open(raw, flags)};
}

static void beside_close(struct beside *both)
{
    disk_close(both->disk);
    close(both->fd);
}

/* One full file, in the page cache with the same kind of pages as the plain file. */
static struct beside flat_read_in(void)
{
    const char *flat = in_work("scattered-1"), *raw = in_work("scattered-1.raw");
    if (access(flat, F_OK) != 0)
        scattered(1, flat, raw);
    struct beside both = beside_open(flat, "", raw, 0);
    disk_read_in(both.disk);
    file_read_in(both.fd);
    return both;
}

static struct subject of_disk(avhdx_disk *disk, struct subject s)
{
    s.disk = disk;
    return s;
}

static struct subject of_file(int fd, struct subject s)
{
    s.fd = fd;
    return s;
}

/* The place of each unit of a disk; none may be zero or in two places. */
static struct place *places_of(avhdx_disk *disk, uint64_t unit)
{
    uint64_t size = (uint64_t)avhdx_get_size(disk);
    struct place *places = calloc(size / unit, sizeof *places);
    need_sys(places != NULL, "places");
    for (uint64_t at = 0; at < size;) {
        struct avhdx_extent extents[256];
        size_t n = 256;
        uint64_t covered;
        need(avhdx_block_status(disk, at, size - at, 0, extents, &n, &covered), "block status");
        for (size_t i = 0; i < n; i++)
            for (uint64_t o = 0; o < extents[i].length; o += unit)
                places[(extents[i].offset + o) / unit] =
                    (struct place){avhdx_layer_fd(disk, extents[i].layer), (off_t)(extents[i].file_offset + o)};
        at += covered;
    }
    return places;
}

/* What reading the same bytes from the layers' files reaches when it is known where they are. */
static double limit(avhdx_disk *disk, const char *name, struct subject shape, uint64_t piece, int fd)
{
    struct place *places = places_of(disk, piece);
    struct subject a = of_disk(disk, shape), b = of_file(fd, shape);
    a.places = places;
    a.piece = piece;
    struct row row = row_begin(name, INFORMATION, 0, "x pread");
    double median = compare(&row, &a, &b);
    free(places);
    return median;
}

#define SEQUENTIAL ((struct subject){.size = SIZE, .unit = MIB, .count = 1024, .read_in = true})
#define RANDOM ((struct subject){.size = SIZE, .unit = 4 * KIB, .count = 200000, .random = true, .read_in = true})

/* From the device: what is not in the page cache, and what goes around it. */
static void cold(const char *leaf, const char *raw)
{
    struct beside both = beside_open(leaf, "read-only=on", raw, 0);
    struct subject sequential = SEQUENTIAL, random = RANDOM;
    sequential.cold = random.cold = true;
    sequential.read_in = random.read_in = false;
    random.count = 3200;
    struct subject a = of_disk(both.disk, sequential), b = of_file(both.fd, sequential);
    struct row row = row_begin("sequential read 1 MiB, depth 8, cold", INFORMATION, 0, "x pread");
    compare(&row, &a, &b);
    a = of_disk(both.disk, random), b = of_file(both.fd, random);
    row = row_begin("random read 4 KiB, depth 8, cold", INFORMATION, 0, "x pread");
    compare(&row, &a, &b);
    beside_close(&both);

    both = beside_open(leaf, "read-only=on,cache=none", raw, O_DIRECT);
    random.cold = false;
    a = of_disk(both.disk, random), b = of_file(both.fd, random);
    row = row_begin("random read 4 KiB, depth 8, cache=none, and pread with O_DIRECT", INFORMATION, 0, "x pread");
    compare(&row, &a, &b);
    beside_close(&both);
}

void bench_reads(void)
{
    static const int depths[] = {1, 8, 32};
    for (size_t i = 0; i < 3; i++) {
        int depth = depths[i];
        const char *leaf = in_work("scattered-%d", depth), *raw = in_work("scattered-%d.raw", depth);
        scattered(depth, leaf, raw);
        struct beside both = beside_open(leaf, "read-only=on", raw, 0);
        char name[96];
        struct subject a = of_disk(both.disk, SEQUENTIAL), b = of_file(both.fd, SEQUENTIAL);
        snprintf(name, sizeof name, "sequential read 1 MiB, depth %d", depth);
        struct row row = row_begin(name, depth == 8 ? INFORMATION : AT_LEAST, 0.97, "x pread");
        if (depth == 32)
            row.limit = limit(both.disk, "(limit: pread from the layers' files at known places, 1 MiB)", SEQUENTIAL, PIECE,
                              both.fd);
        compare(&row, &a, &b);
        a = of_disk(both.disk, RANDOM), b = of_file(both.fd, RANDOM);
        snprintf(name, sizeof name, "random read 4 KiB, depth %d%s", depth, depth == 1 ? "" : ", scattered 64 KiB writes");
        row = row_begin(name, depth == 1 ? AT_LEAST : INFORMATION, 0.90, "x pread");
        compare(&row, &a, &b);
        beside_close(&both);
        if (depth == 8)
            cold(leaf, raw);
        if (depth != 1)
            command("rm -f '%s'*", leaf);
    }

    const char *deep = in_work("deep"), *flat = in_work("scattered-1");
    empty_layers(64, deep);
    avhdx_disk *a_disk = disk_open(deep, "read-only=on"), *b_disk = disk_open(flat, "read-only=on");
    struct subject a = of_disk(a_disk, RANDOM), b = of_disk(b_disk, RANDOM);
    struct row row = row_begin("random read 4 KiB, depth 64, time in units of depth 1", AT_MOST, 1.05, "x depth 1");
    compare(&row, &b, &a);
    disk_close(a_disk);
    disk_close(b_disk);
    command("rm -f '%s'*", deep);

    const char *shreds = in_work("shredded"), *raw = in_work("shredded.raw");
    shredded(shreds, raw);
    struct beside both = beside_open(shreds, "read-only=on", raw, 0);
    struct subject shape = RANDOM;
    shape.size = 256 * MIB;
    a = of_disk(both.disk, shape), b = of_file(both.fd, shape);
    row = row_begin("random read 4 KiB, depth 8, every block partial, shredded bitmaps", AT_LEAST, 0.60, "x pread");
    row.limit = limit(both.disk, "(limit: pread from the layers' files at known places, 4 KiB)", shape, shape.unit, both.fd);
    compare(&row, &a, &b);
    beside_close(&both);
    command("rm -f '%s'*", shreds);
}

/* Into an empty child of `parent` and into an empty sparse file, made durable as often. The device decides how long it
 * takes, so there are few rounds. */
static void allocating(const char *parent)
{
    struct row row =
        row_begin("random allocating write 4 KiB, empty child, flush every 1,000", AT_LEAST, 0.60, "x pwrite");
    struct subject shape = {
        .size = SIZE, .unit = 4 * KIB, .count = 4000, .random = true, .write = true, .flush = 1000, .syncs = 2};
    for (int round = 0; round < 5; round++) {
        /* Not removed in between: a file of thousands of pieces takes seconds to go. */
        const char *child = in_work("child-%d.avhdx", round), *sparse = in_work("sparse-%d.raw", round);
        avhdx_disk *disk = disk_open(parent, "");
        disk_checkpoint(disk, child);
        int fd = open(sparse, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        need_sys(fd >= 0 && ftruncate(fd, SIZE) == 0, sparse);
        sync();
        memory_fill();
        shape.seed = (uint64_t)round;
        struct subject a = of_disk(disk, shape), b = of_file(fd, shape);
        double of_a = 0, of_b = 0;
        for (int turn = 0; turn < 2; turn++) {
            if ((round + turn) % 2)
                of_a = timed(run, &a);
            else
                of_b = timed(run, &b);
        }
        row_add(&row, of_b / of_a);
        disk_close(disk);
        close(fd);
    }
    row_end(&row);
}

void bench_writes(void)
{
    struct beside both = flat_read_in();
    struct subject shape = RANDOM;
    shape.write = true;
    shape.read_in = false;
    struct subject a = of_disk(both.disk, shape), b = of_file(both.fd, shape);
    struct row row = row_begin("random in-place write 4 KiB", AT_LEAST, 0.90, "x pwrite");
    compare(&row, &a, &b);
    beside_close(&both);

    allocating(in_work("scattered-1"));
}

/* ---- Threads ---- */

/* What a thread takes of the work at once: none waits long for the last. */
#define PART 250

struct crowd {
    struct subject subject;
    int threads;
    atomic_int ready;
    atomic_uint_fast64_t next;
    double start[MOST_THREADS], end[MOST_THREADS];
};

static void *share(void *arg)
{
    struct crowd *crowd = arg;
    struct subject part = crowd->subject;
    uint64_t parts = part.count * (uint64_t)crowd->threads / PART;
    int number = atomic_fetch_add(&crowd->ready, 1);
    while (atomic_load(&crowd->ready) < crowd->threads)
        sched_yield();
    part.thread = number;
    part.count = PART;
    crowd->start[number] = now();
    for (uint64_t next; (next = atomic_fetch_add(&crowd->next, 1)) < parts;) {
        part.seed = crowd->subject.seed * parts + next;
        run(&part);
    }
    crowd->end[number] = now();
    return NULL;
}

/* Seconds from when all threads are there until `subject` is done as many times as there are threads. */
static double crowd_time(const struct subject *subject, int threads)
{
    struct crowd crowd = {.subject = *subject, .threads = threads};
    pthread_t ids[MOST_THREADS];
    for (int i = 0; i < threads; i++)
        need_sys(pthread_create(&ids[i], NULL, share, &crowd) == 0, "thread");
    for (int i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
    double start = crowd.start[0], end = crowd.end[0];
    for (int i = 1; i < threads; i++) {
        start = crowd.start[i] < start ? crowd.start[i] : start;
        end = crowd.end[i] > end ? crowd.end[i] : end;
    }
    return end - start;
}

/* What `threads` do in units of what one does, on the plain file and on the disk, in turns. */
static void crowded(const struct subject *file, const struct subject *disk, const char *what, int threads)
{
    char names[2][96];
    struct row rows[2];
    double median = 0;
    /* What two cores do for two threads is the machine's. */
    bool bound = !file->write && threads == 2;
    snprintf(names[0], sizeof names[0], "%srandom %s 4 KiB, %d threads on one plain file%s", bound ? "(limit: " : "", what,
             threads, bound ? ")" : "");
    snprintf(names[1], sizeof names[1], "random %s 4 KiB, %d threads on one disk", what, threads);
    rows[0] = row_begin(names[0], INFORMATION, 0, "x one");
    rows[1] = row_begin(names[1], bound ? AT_LEAST : INFORMATION, 1.8, "x one");
    for (int round = 0; round <= rounds; round++) {
        double alone[2] = {0}, together[2] = {0};
        for (int turn = 0; turn < 2 * TURNS; turn++) {
            struct subject part = turn % 2 ? *disk : *file;
            part.count /= TURNS;
            part.seed = (uint64_t)(round * TURNS + turn / 2);
            alone[turn % 2] += crowd_time(&part, 1);
            together[turn % 2] += crowd_time(&part, threads);
        }
        for (int i = 0; round && i < 2; i++)
            row_add(&rows[i], alone[i] * threads / together[i]);
    }
    for (int i = 0; i < 2; i++) {
        rows[i].limit = bound ? median : 0;
        median = row_end(&rows[i]);
    }
}

void bench_threads(void)
{
    for (int write = 0; write <= 1; write++) {
        struct beside both = flat_read_in();
        struct subject shape = RANDOM;
        shape.write = write;
        shape.count = write ? 16000 : 200000;
        struct subject file = of_file(both.fd, shape), disk = of_disk(both.disk, shape);
        for (int threads = 2; threads <= MOST_THREADS; threads *= 2)
            crowded(&file, &disk, write ? "write" : "read", threads);
        beside_close(&both);
    }
}

/* ---- Hot paths, for counting instructions ---- */

int hot_path(const char *name, uint64_t times)
{
    const char *leaf = in_work("hot");
    avhdx_disk *disk;
    struct subject shape = {.size = 64 * MIB, .unit = 4 * KIB, .count = times, .random = true};
    if (strcmp(name, "read-depth-1") == 0 || strcmp(name, "write-in-place") == 0) {
        disk_create(leaf, "size=64M,block-size=2M");
        disk = disk_open(leaf, "cache=unsafe");
        disk_fill(disk, 0, 64 * MIB);
    } else if (strcmp(name, "read-depth-64") == 0 || strcmp(name, "read-shredded") == 0 ||
               strcmp(name, "write-bitmap") == 0) {
        bool shred = strcmp(name, "read-shredded") == 0;
        int depth = strcmp(name, "read-depth-64") == 0 ? 64 : shred ? 8 : 2;
        char base[512], path[512];
        struct random random = {5};
        snprintf(base, sizeof base, "%s-1.vhdx", leaf);
        disk_create(base, "size=64M,block-size=2M");
        disk = disk_open(base, "cache=unsafe");
        disk_fill(disk, 0, 64 * MIB);
        for (int layer = 2; layer <= depth; layer++) {
            snprintf(path, sizeof path, "%s-%d.avhdx", leaf, layer);
            disk_checkpoint(disk, path);
            for (uint64_t at = 0; shred && at < 64 * MIB; at += 4 * KIB)
                if (random_below(&random, 3) == 0)
                    disk_fill(disk, at, 4 * KIB);
        }
    } else {
        fprintf(stderr, "no such path: %s\n", name);
        return 2;
    }
    shape.write = strncmp(name, "write", 5) == 0;
    /* All pages and maps come in here, through another function than the one that is counted. */
    static char buf[4 * KIB];
    struct iovec iov = {buf, sizeof buf};
    for (uint64_t at = 0; strcmp(name, "write-bitmap") != 0 && at < shape.size; at += sizeof buf)
        need(avhdx_preadv(disk, &iov, 1, at), "read");
    if (strcmp(name, "write-in-place") == 0)
        need(avhdx_pwritev(disk, &iov, 1, 0, 0), "write");
    struct subject s = of_disk(disk, shape);
    run(&s);
    avhdx_abort(disk);
    return 0;
}
