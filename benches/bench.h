/* What measuring needs: clocks, disks made through the C API, ratios, a table. See scripts/bench and
 * docs/performance.md. */
#ifndef BENCH_H
#define BENCH_H

#include <avhdx.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)
#define TIB (1024 * GIB)

/* ---- The run ---- */

/* Rounds of each measurement. */
extern int rounds;
/* A directory with room for everything, and one on a file system that shares extents; NULL where there is none. */
extern const char *work, *reflinks;

/* Stops the program with the library's last error. */
void need(int result, const char *what);
/* Stops the program with errno. */
void need_sys(bool ok, const char *what);
/* work/NAME; never freed. */
const char *in_work(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- Time ---- */

double now(void);
/* Seconds that one call takes. */
double timed(void (*fn)(void *), void *arg);

/* ---- Results ---- */

enum bound { AT_LEAST, AT_MOST, INFORMATION };

/* A line of the table: begun, given one value for each round, ended. */
struct row {
    const char *name, *unit;
    enum bound bound;
    double target;
    /* Where the target cannot be reached: what can, measured in the same run. 0: not known. */
    double limit;
    double values[256];
    int count;
};

struct row row_begin(const char *name, enum bound bound, double target, const char *unit);
void row_add(struct row *row, double value);
/* Prints the median, which it returns, and its verdict: LIMIT is a target missed, at most a tenth below `limit`. */
double row_end(struct row *row);
/* A line that cannot be measured here. */
void row_skip(const char *name, const char *why);
/* Whether all bounds held. */
int table_end(void);

/* ---- Disks ---- */

/* Pseudo-random numbers, the same in every run. */
struct random {
    uint64_t state;
};
uint64_t random_below(struct random *random, uint64_t limit);

/* Creates a disk: an option line of avhdx_create. */
void disk_create(const char *path, const char *options);
avhdx_disk *disk_open(const char *path, const char *options);
/* Continues in a new child. */
void disk_checkpoint(avhdx_disk *disk, const char *path);
void disk_close(avhdx_disk *disk);
/* Fills a range with bytes that are not zero. */
void disk_fill(avhdx_disk *disk, uint64_t offset, uint64_t len);
/* The content of a disk as a plain file. */
void disk_to_raw(avhdx_disk *disk, const char *path);
/* Makes a file durable, drops it from the page cache and reads it in again from its start to its end, so that the pages
 * are those of a file that was read, however it was written. */
void file_read_in(int fd);
/* Drops a file, which is durable, from the page cache. */
void file_forget(int fd);
/* The same for every file of a disk. */
void disk_read_in(avhdx_disk *disk);
void disk_forget(avhdx_disk *disk);
/* Fills memory that is free with pages of a file of nothing but holes, which are then taken for other files. A virtual machine
 * may give free memory back to its host; whoever uses it next waits for it, longer than for all that is measured here. */
void memory_fill(void);
/* Runs a command; stops the program when it fails. */
void command(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- What is measured ---- */

void bench_reads(void);
void bench_writes(void);
void bench_threads(void);
/* These two measure a process that they start: self --alone WHAT PATH. */
void bench_open(const char *self);
void bench_check(const char *self);
int alone(const char *what, const char *path);
void bench_merge(void);
void bench_convert(void);
void bench_peers(void);
/* Does one hot path again and again, for scripts/bench instructions. */
int hot_path(const char *name, uint64_t times);

#endif
