/* Opening, merging, converting, checking. */
#define _GNU_SOURCE
#include "bench.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A number from a file of /proc/self. */
static uint64_t of_self(const char *file, const char *key)
{
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/self/%s", file);
    FILE *f = fopen(path, "r");
    need_sys(f != NULL, path);
    uint64_t value = 0;
    while (fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0)
            value = strtoull(line + strlen(key) + 1, NULL, 10);
    fclose(f);
    return value;
}

/* ---- Open ---- */

static void opened(const char *path)
{
    static char buf[4096];
    /* Let go with the process, which ends now. */
    avhdx_disk *disk = disk_open(path, "");
    need(avhdx_pread(disk, buf, sizeof buf, 63 * TIB), "read");
}

static void checked(const char *path)
{
    struct avhdx_check check = AVHDX_CHECK_INIT;
    need(avhdx_check(path, NULL, &check, NULL), path);
    if (check.errors || check.allocated_blocks != TIB / MIB) {
        fprintf(stderr, "check found %llu errors, %llu blocks\n", (unsigned long long)check.errors,
                (unsigned long long)check.allocated_blocks);
        exit(2);
    }
}

int alone(const char *what, const char *path)
{
    double start = now();
    (strcmp(what, "open") == 0 ? opened : checked)(path);
    printf("%.9f %llu\n", now() - start, (unsigned long long)of_self("status", "VmHWM:"));
    return 0;
}

/* Does `what` in a process of its own in each round. */
static void in_process(const char *self, const char *what, const char *path, struct row *ms, struct row *memory)
{
    for (int round = 0; round <= rounds; round++) {
        char line[1200];
        double seconds;
        unsigned long long kib;
        snprintf(line, sizeof line, "'%s' --alone %s '%s'", self, what, path);
        FILE *output = popen(line, "r");
        need_sys(output && fscanf(output, "%lf %llu", &seconds, &kib) == 2 && pclose(output) == 0, line);
        if (round) {
            row_add(ms, seconds * 1000);
            row_add(memory, (double)kib / 1024);
        }
    }
    row_end(ms);
    row_end(memory);
}

void bench_open(const char *self)
{
    char name[64];
    disk_create(in_work("huge-1.vhdx"), "size=64T,block-size=1M");
    avhdx_disk *disk = disk_open(in_work("huge-1.vhdx"), "");
    for (int layer = 2; layer <= 8; layer++) {
        snprintf(name, sizeof name, "huge-%d.avhdx", layer);
        disk_checkpoint(disk, in_work("%s", name));
        disk_fill(disk, (uint64_t)layer * 7 * TIB, 64 * KIB);
    }
    disk_close(disk);
    struct row time = row_begin("open and first read, 64 TiB, 1 MiB blocks, depth 8", AT_MOST, 10, "ms");
    struct row memory = row_begin("the same, resident memory of the process", AT_MOST, 16, "MiB");
    in_process(self, "open", in_work("huge-8.avhdx"), &time, &memory);
    command("rm -f '%s'/huge-*", work);
}

/* ---- Merge ---- */

#define CHILD (2 * GIB)

static void merge(const char *leaf, uint32_t base, const char *options)
{
    avhdx_disk *disk = disk_open(leaf, "");
    avhdx_opts *opts = avhdx_opts_new();
    need(avhdx_opts_parse(opts, options), options);
    need(avhdx_merge(disk, 0, base, opts, NULL), "merge");
    avhdx_opts_free(opts);
    disk_close(disk);
}

/* An empty base and a child of 2 GiB in `dir`, both durable. */
static void pair(const char *dir)
{
    char base[512], child[512];
    snprintf(base, sizeof base, "%s/base.vhdx", dir);
    snprintf(child, sizeof child, "%s/child.avhdx", dir);
    command("rm -f '%s' '%s'", base, child);
    disk_create(base, "size=4G,block-size=2M");
    avhdx_disk *disk = disk_open(base, "");
    disk_checkpoint(disk, child);
    disk_fill(disk, 512 * MIB, CHILD);
    disk_close(disk);
    sync();
}

static double merged(const char *dir, const char *options)
{
    char child[512];
    snprintf(child, sizeof child, "%s/child.avhdx", dir);
    memory_fill();
    double start = now();
    merge(child, 1, options);
    return now() - start;
}

static double copied(const char *dir)
{
    memory_fill();
    double start = now();
    command("cp --reflink=never '%s/child.avhdx' '%s/copy' && sync '%s/copy'", dir, dir, dir);
    double time = now() - start;
    command("rm '%s/copy'", dir);
    return time;
}

void bench_merge(void)
{
    struct row row = row_begin("merge of a 2 GiB child, mode=copy, in units of cp and sync", AT_MOST, 1.15, "x cp");
    struct row two = row_begin("the same, threads=2", INFORMATION, 0, "x cp");
    int few = rounds < 7 ? rounds : 7;
    for (int round = 0; round <= few; round++) {
        double cp = 0, ours = 0, theirs = 0;
        for (int i = 0; i < 3; i++) {
            pair(work);
            switch ((round + i) % 3) {
            case 0: cp = copied(work); break;
            case 1: ours = merged(work, "mode=copy"); break;
            default: theirs = merged(work, "mode=copy,threads=2");
            }
        }
        if (round) {
            row_add(&row, ours / cp);
            row_add(&two, theirs / cp);
        }
    }
    row_end(&row);
    row_end(&two);
    command("rm -f '%s'/base.vhdx '%s'/child.avhdx", work, work);

    const char *name = "merge of a 2 GiB child by reflink, in units of mode=copy";
    if (!reflinks) {
        row_skip(name, "no file system that shares extents was given");
    } else {
        row = row_begin(name, AT_MOST, 0.05, "x copy");
        struct row bytes = row_begin("the same, written", AT_MOST, 64, "MiB");
        for (int round = 0; round <= few; round++) {
            pair(reflinks);
            double copy = merged(reflinks, "mode=copy");
            pair(reflinks);
            uint64_t before = of_self("io", "write_bytes:");
            double reflink = merged(reflinks, "mode=reflink");
            uint64_t written = of_self("io", "write_bytes:") - before;
            if (round) {
                row_add(&row, reflink / copy);
                row_add(&bytes, (double)written / (double)MIB);
            }
        }
        row_end(&row);
        row_end(&bytes);
        command("rm -f '%s'/base.vhdx '%s'/child.avhdx", reflinks, reflinks);
    }

    /* 16 layers that change overlapping parts: what is written is the union. */
    static unsigned char changed[64 * 1024];
    struct random random = {9};
    char leaf[512];
    memset(changed, 0, sizeof changed);
    disk_create(in_work("many-0.vhdx"), "size=256M,block-size=2M");
    avhdx_disk *disk = disk_open(in_work("many-0.vhdx"), "");
    disk_fill(disk, 0, 256 * MIB);
    for (int layer = 1; layer <= 16; layer++) {
        snprintf(leaf, sizeof leaf, "%s", in_work("many-%d.avhdx", layer));
        disk_checkpoint(disk, leaf);
        for (int i = 0; i < 4000; i++) {
            uint64_t unit = random_below(&random, sizeof changed);
            disk_fill(disk, unit * 4 * KIB, 4 * KIB);
            changed[unit] = 1;
        }
    }
    disk_close(disk);
    uint64_t of_union = 0;
    for (size_t i = 0; i < sizeof changed; i++)
        of_union += changed[i] * 4 * KIB;
    row = row_begin("merge of 16 layers at once, bytes written in units of their union", AT_MOST, 1.02, "x union");
    uint64_t before = of_self("io", "wchar:");
    merge(leaf, 16, "");
    row_add(&row, (double)(of_self("io", "wchar:") - before) / (double)of_union);
    row_end(&row);
    command("rm -f '%s'/many-*", work);
}

/* ---- Convert ---- */

static double converted(const char *leaf, const char *to, const char *options)
{
    avhdx_disk *disk = disk_open(leaf, "read-only=on");
    avhdx_opts *opts = avhdx_opts_new();
    need(avhdx_opts_parse(opts, options), options);
    memory_fill();
    double start = now();
    need(avhdx_convert(disk, to, opts, NULL), to);
    double time = now() - start;
    avhdx_opts_free(opts);
    disk_close(disk);
    command("rm '%s'", to);
    return time;
}

/* A child of 2 GiB to raw, beside cp of the child. */
static void convert_pair(void)
{
    char leaf[512], raw[512];
    pair(work);
    snprintf(leaf, sizeof leaf, "%s/child.avhdx", work);
    snprintf(raw, sizeof raw, "%s/child.raw", work);
    struct row row = row_begin("convert of a 2 GiB child to raw, mode=copy, in units of cp and sync", INFORMATION, 0, "x cp");
    struct row two = row_begin("the same, threads=2", INFORMATION, 0, "x cp");
    int few = rounds < 7 ? rounds : 7;
    for (int round = 0; round <= few; round++) {
        double cp = 0, ours = 0, theirs = 0;
        for (int i = 0; i < 3; i++) {
            sync();
            switch ((round + i) % 3) {
            case 0: cp = copied(work); break;
            case 1: ours = converted(leaf, raw, "to=raw,mode=copy"); break;
            default: theirs = converted(leaf, raw, "to=raw,mode=copy,threads=2");
            }
        }
        if (round) {
            row_add(&row, ours / cp);
            row_add(&two, theirs / cp);
        }
    }
    row_end(&row);
    row_end(&two);
    command("rm -f '%s'/base.vhdx '%s'/child.avhdx", work, work);

    const char *name = "convert of a 2 GiB child to raw by reflink, in units of mode=copy";
    if (!reflinks) {
        row_skip(name, "no file system that shares extents was given");
        return;
    }
    row = row_begin(name, INFORMATION, 0, "x copy");
    pair(reflinks);
    snprintf(leaf, sizeof leaf, "%s/child.avhdx", reflinks);
    snprintf(raw, sizeof raw, "%s/child.raw", reflinks);
    for (int round = 0; round <= few; round++) {
        double copy = converted(leaf, raw, "to=raw,mode=copy");
        double reflink = converted(leaf, raw, "to=raw,mode=reflink");
        if (round)
            row_add(&row, reflink / copy);
    }
    row_end(&row);
    command("rm -f '%s'/base.vhdx '%s'/child.avhdx", reflinks, reflinks);
}

void bench_convert(void)
{
    convert_pair();
    const char *name = "flatten 64 TiB with 64 MiB of data to raw";
    if (!reflinks) {
        row_skip(name, "no file system that holds a file of 64 TiB was given");
        return;
    }
    char base[512], leaf[512], raw[512];
    snprintf(base, sizeof base, "%s/huge.vhdx", reflinks);
    snprintf(leaf, sizeof leaf, "%s/huge.avhdx", reflinks);
    snprintf(raw, sizeof raw, "%s/huge.raw", reflinks);
    disk_create(base, "size=64T,block-size=1M");
    avhdx_disk *disk = disk_open(base, "");
    for (int i = 0; i < 64; i++) {
        if (i == 32)
            disk_checkpoint(disk, leaf);
        disk_fill(disk, (uint64_t)i * TIB + (uint64_t)i * 300 * MIB, MIB);
    }
    disk_close(disk);
    sync();
    struct row row = row_begin(name, AT_MOST, 0.3, "s");
    for (int round = 0; round <= rounds; round++) {
        double time = converted(leaf, raw, "to=raw");
        if (round)
            row_add(&row, time);
    }
    row_end(&row);
    command("rm -f '%s'/huge.*", reflinks);
}

/* ---- Check ---- */

void bench_check(const char *self)
{
    const char *path = in_work("full.vhdx");
    disk_create(path, "size=1T,block-size=1M,type=fixed");
    struct row time = row_begin("check of 1 TiB, every block allocated, 1 MiB blocks", AT_MOST, 2000, "ms");
    struct row memory = row_begin("the same, resident memory of the process", AT_MOST, 64, "MiB");
    in_process(self, "check", path, &time, &memory);
    unlink(path);
}
