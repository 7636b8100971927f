/* bench DIRECTORY [ROUNDS] [--reflinks DIRECTORY] [--json] [--only GROUP]: measures the library through its C API beside
 * the plain file of the same content, in turns, and prints for each measure the median of the ratios, the least and the
 * greatest, and whether the target of docs/performance.md holds.
 * bench DIRECTORY --hot PATH TIMES: does one hot path so many times, for counting instructions. */
#define _GNU_SOURCE
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

int rounds = 11;
const char *work, *reflinks;
static bool json;
static int failed, printed;

void need(int result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s; %s\n", what, avhdx_error_message(NULL), avhdx_error_cause(NULL));
        exit(2);
    }
}

void need_sys(bool ok, const char *what)
{
    if (!ok) {
        perror(what);
        exit(2);
    }
}

const char *in_work(const char *format, ...)
{
    char name[256], *path;
    va_list list;
    va_start(list, format);
    vsnprintf(name, sizeof name, format, list);
    va_end(list);
    need_sys(asprintf(&path, "%s/%s", work, name) > 0, "memory");
    return path;
}

void command(const char *format, ...)
{
    char line[2048];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    if (system(line) != 0) {
        fprintf(stderr, "failed: %s\n", line);
        exit(2);
    }
}

double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

double timed(void (*fn)(void *), void *arg)
{
    double start = now();
    fn(arg);
    return now() - start;
}

/* ---- Results ---- */

struct row row_begin(const char *name, enum bound bound, double target, const char *unit)
{
    return (struct row){.name = name, .unit = unit, .bound = bound, .target = target};
}

void row_add(struct row *row, double value)
{
    if (row->count < (int)(sizeof row->values / sizeof row->values[0]))
        row->values[row->count++] = value;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double row_end(struct row *row)
{
    qsort(row->values, (size_t)row->count, sizeof row->values[0], ascending);
    double median = row->values[row->count / 2], least = row->values[0], most = row->values[row->count - 1];
    const char *verdict = "";
    char wanted[64] = "";
    if (row->bound != INFORMATION) {
        bool holds = row->bound == AT_LEAST ? median >= row->target : median <= row->target;
        bool at_limit = row->limit > 0 && median >= 0.9 * row->limit;
        verdict = holds ? "PASS" : at_limit ? "LIMIT" : "FAIL";
        failed += !holds && !at_limit;
        snprintf(wanted, sizeof wanted, "%s %.3g", row->bound == AT_LEAST ? ">=" : "<=", row->target);
    }
    if (json)
        printf("%s\n  {\"measure\": \"%s\", \"unit\": \"%s\", \"median\": %.6g, \"min\": %.6g, \"max\": %.6g, "
               "\"target\": \"%s\", \"verdict\": \"%s\"}",
               printed++ ? "," : "[", row->name, row->unit, median, least, most, wanted, verdict);
    else
        printf("%-66s %8.3f  %8.3f .. %-8.3f %-9s %-9s %s\n", row->name, median, least, most, row->unit, wanted,
               verdict);
    fflush(stdout);
    return median;
}

void row_skip(const char *name, const char *why)
{
    if (json)
        printf("%s\n  {\"measure\": \"%s\", \"skipped\": \"%s\"}", printed++ ? "," : "[", name, why);
    else
        printf("%-66s not measured: %s\n", name, why);
    fflush(stdout);
}

int table_end(void)
{
    if (json)
        printf("%s\n", printed ? "\n]" : "[]");
    else if (failed)
        printf("%d of the targets missed\n", failed);
    return failed != 0;
}

/* ---- Disks ---- */

uint64_t random_below(struct random *random, uint64_t limit)
{
    random->state = random->state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (random->state >> 33) % limit;
}

static avhdx_opts *parsed(const char *line)
{
    avhdx_opts *opts = avhdx_opts_new();
    need(avhdx_opts_parse(opts, line), line);
    return opts;
}

void disk_create(const char *path, const char *options)
{
    avhdx_opts *opts = parsed(options);
    need(avhdx_create(path, opts), path);
    avhdx_opts_free(opts);
}

avhdx_disk *disk_open(const char *path, const char *options)
{
    avhdx_opts *opts = parsed(options);
    avhdx_disk *disk;
    need(avhdx_open(&disk, path, opts), path);
    avhdx_opts_free(opts);
    return disk;
}

void disk_checkpoint(avhdx_disk *disk, const char *path)
{
    need(avhdx_checkpoint(disk, path, NULL), path);
}

void disk_close(avhdx_disk *disk)
{
    need(avhdx_close(disk), "close");
}

void disk_fill(avhdx_disk *disk, uint64_t offset, uint64_t len)
{
    static uint64_t bytes[MIB / 8];
    static struct random random = {1};
    if (!bytes[0])
        for (size_t i = 0; i < MIB / 8; i++)
            bytes[i] = random_below(&random, UINT64_C(1) << 31) << 31 | 1;
    while (len > 0) {
        struct iovec part = {bytes, len < MIB ? len : MIB};
        bytes[0]++;
        need(avhdx_pwritev(disk, &part, 1, offset, 0), "write");
        offset += part.iov_len;
        len -= part.iov_len;
    }
}

void disk_to_raw(avhdx_disk *disk, const char *path)
{
    static char buf[MIB];
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    need_sys(fd >= 0, path);
    int64_t size = avhdx_get_size(disk);
    for (int64_t at = 0; at < size; at += sizeof buf) {
        size_t part = (uint64_t)(size - at) < sizeof buf ? (size_t)(size - at) : sizeof buf;
        need(avhdx_pread(disk, buf, part, (uint64_t)at), "read");
        need_sys(pwrite(fd, buf, part, at) == (ssize_t)part, path);
    }
    need_sys(fdatasync(fd) == 0 && close(fd) == 0, path);
}

void file_forget(int fd)
{
    need_sys(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0, "dropping a file");
}

void file_read_in(int fd)
{
    static char buf[MIB];
    need_sys(fdatasync(fd) == 0, "making a file durable");
    file_forget(fd);
    ssize_t len;
    for (off_t at = 0; (len = pread(fd, buf, sizeof buf, at)) > 0; at += len)
        ;
    need_sys(len == 0, "reading a file in");
}

void disk_read_in(avhdx_disk *disk)
{
    for (int layer = 0; layer < avhdx_layer_count(disk); layer++)
        file_read_in(avhdx_layer_fd(disk, layer));
}

void disk_forget(avhdx_disk *disk)
{
    for (int layer = 0; layer < avhdx_layer_count(disk); layer++)
        file_forget(avhdx_layer_fd(disk, layer));
}

void memory_fill(void)
{
    static char buf[MIB];
    static int fd = -1;
    static off_t at;
    if (fd < 0) {
        const char *holes = in_work("holes");
        fd = open(holes, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        need_sys(fd >= 0 && unlink(holes) == 0 && ftruncate(fd, 8 * TIB) == 0, holes);
    }
    struct sysinfo info;
    need_sys(sysinfo(&info) == 0, "memory");
    for (uint64_t left = (uint64_t)info.freeram * info.mem_unit; left > 256 * MIB; left -= sizeof buf) {
        need_sys(pread(fd, buf, sizeof buf, at) == sizeof buf, "filling memory");
        at += sizeof buf;
    }
}

int main(int argc, char **argv)
{
    const char *only = "", *hot = NULL;
    uint64_t times = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--alone") == 0 && i + 2 < argc)
            return alone(argv[i + 1], argv[i + 2]);
        if (strcmp(argv[i], "--json") == 0)
            json = true;
        else if (strcmp(argv[i], "--reflinks") == 0 && i + 1 < argc)
            reflinks = argv[++i];
        else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc)
            only = argv[++i];
        else if (strcmp(argv[i], "--hot") == 0 && i + 2 < argc)
            hot = argv[i + 1], times = strtoull(argv[i + 2], NULL, 10), i += 2;
        else if (!work)
            work = argv[i];
        else
            rounds = atoi(argv[i]);
    }
    if (!work || rounds < 1) {
        fprintf(stderr, "usage: bench DIRECTORY [ROUNDS] [--reflinks DIRECTORY] [--json] [--only GROUP]\n");
        return 2;
    }
    if (hot)
        return hot_path(hot, times);
    if (!json)
        printf("%-66s %8s  %8s    %-8s %-9s %-9s\n", "measure", "median", "min", "max", "", "target");
#define GROUP(name, measure) \
    if (!*only || strcmp(only, name) == 0) \
    measure
    GROUP("reads", bench_reads());
    GROUP("writes", bench_writes());
    GROUP("threads", bench_threads());
    GROUP("open", bench_open(argv[0]));
    GROUP("merge", bench_merge());
    GROUP("convert", bench_convert());
    GROUP("check", bench_check(argv[0]));
    GROUP("peers", bench_peers());
    return table_end();
}
