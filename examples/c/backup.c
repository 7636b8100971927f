/* Incremental backups: what changed on a disk since its last checkpoint, as a stream that is applied to a raw file.
 *
 *     backup LEAF NEW_LEAF STREAM      takes a checkpoint: LEAF is frozen, the disk goes on as NEW_LEAF, which must not
 *                                      exist; then writes to STREAM what LEAF holds that its parent does not
 *     backup --again NEW_LEAF STREAM   the stream alone, after a failure or later: it is the same each time
 *     backup --apply STREAM RAW        brings RAW, the disk as of the backup before, to this backup
 *
 * The first backup, of a disk without a parent, is a full one and its --apply makes RAW. Later ones are applied in the
 * order in which they were made; one that was cut short is applied again. When a stream is safe, the checkpoint it came
 * from may be merged into its parent (see merge.c): the backup after it needs only what is newer.
 *
 * A disk that is in use is locked, and the program that has it open takes the checkpoint: increment() below works on
 * its handle while its other threads read and write.
 *
 * A stream is a row of numbers, each 64 bits, little-endian:
 *     MAGIC, bytes of the disk, 1 if full or 0
 *     then records: kind, offset, length; after the numbers of a DATA record as many bytes of data
 *     and at the end the record END, 0, 0; without it the stream is cut short
 *
 * Build with: cc -o backup backup.c $(pkg-config --cflags --libs avhdx)
 */
#define _GNU_SOURCE
#include <avhdx.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAGIC UINT64_C(0x3143495844485641) /* "AVHDXIC1" */
enum { END, DATA, ZERO };

static unsigned char buf[1 << 20];

/* What the library says of its last failure. */
static int complain(void)
{
    const char *cause = avhdx_error_cause(NULL), *hint = avhdx_error_hint(NULL);

    fprintf(stderr, "backup: %s%s%s\n", avhdx_error_message(NULL), *cause ? ": " : "", cause);
    if (*hint)
        fprintf(stderr, "backup: %s\n", hint);
    return -1;
}

/* What the system says. */
static int failed(const char *path)
{
    fprintf(stderr, "backup: %s: %s\n", path, strerror(errno));
    return -1;
}

static int put(FILE *stream, uint64_t a, uint64_t b, uint64_t c)
{
    const uint64_t numbers[3] = { a, b, c };
    unsigned char bytes[24];

    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)(numbers[i / 8] >> (i % 8 * 8));
    return fwrite(bytes, sizeof bytes, 1, stream) == 1 ? 0 : -1;
}

static int get(FILE *stream, uint64_t numbers[3])
{
    unsigned char bytes[24];

    if (fread(bytes, sizeof bytes, 1, stream) != 1)
        return -1;
    memset(numbers, 0, 3 * sizeof numbers[0]);
    for (size_t i = 0; i < sizeof bytes; i++)
        numbers[i / 8] |= (uint64_t)bytes[i] << (i % 8 * 8);
    return 0;
}

/* One extent of the layer. */
static int put_extent(avhdx_disk *disk, uint32_t layer, const struct avhdx_extent *e, FILE *stream, const char *path)
{
    if (e->state == AVHDX_STATE_HOLE) /* this layer says nothing of it: as in the parent */
        return 0;
    if (e->state != AVHDX_STATE_DATA) /* all others read as zeros, whatever the parent holds */
        return put(stream, ZERO, e->offset, e->length) < 0 ? failed(path) : 0;
    if (put(stream, DATA, e->offset, e->length) < 0)
        return failed(path);
    for (uint64_t done = 0; done < e->length;) {
        size_t count = e->length - done < sizeof buf ? (size_t)(e->length - done) : sizeof buf;

        if (avhdx_layer_pread(disk, layer, buf, count, e->offset + done) < 0)
            return complain();
        if (fwrite(buf, count, 1, stream) != 1)
            return failed(path);
        done += count;
    }
    return 0;
}

/* Writes what a layer holds, which must not be layer 0 of a disk that is being written. */
static int increment(avhdx_disk *disk, uint32_t layer, FILE *stream, const char *path)
{
    struct avhdx_layer_info info = AVHDX_LAYER_INFO_INIT;
    uint64_t at = 0;

    if (avhdx_layer_info(disk, layer, &info) < 0)
        return complain();
    if (put(stream, MAGIC, info.virtual_size, !(info.flags & AVHDX_INFO_HAS_PARENT)) < 0)
        return failed(path);
    while (at < info.virtual_size) {
        struct avhdx_extent extents[64];
        size_t n = sizeof extents / sizeof extents[0];
        uint64_t processed;

        if (avhdx_block_status(disk, at, info.virtual_size - at, AVHDX_THIS_LAYER(layer), extents, &n, &processed) < 0)
            return complain();
        for (size_t i = 0; i < n; i++)
            if (put_extent(disk, layer, &extents[i], stream, path) < 0)
                return -1;
        at += processed;
    }
    if (put(stream, END, 0, 0) < 0 || fflush(stream) != 0 || fsync(fileno(stream)) < 0)
        return failed(path);
    return 0;
}

/* leaf NULL: the checkpoint has been taken. */
static int backup(const char *leaf, const char *new_leaf, const char *path)
{
    FILE *stream = fopen(path, "wbx"); /* first, so that a stream that cannot be written costs no checkpoint */
    avhdx_opts *opts;
    avhdx_disk *disk;
    int r;

    if (!stream)
        return failed(path);
    opts = avhdx_opts_new();
    r = avhdx_opts_set_bool(opts, "read-only", leaf == NULL);
    if (r == 0)
        r = avhdx_open(&disk, leaf ? leaf : new_leaf, opts);
    avhdx_opts_free(opts);
    if (r < 0) {
        complain();
    } else {
        if (leaf && (r = avhdx_checkpoint(disk, new_leaf, NULL)) < 0)
            complain();
        if (r == 0) {
            r = increment(disk, 1, stream, path); /* 0 is the new leaf, 1 what it was made on */
            if (r < 0)
                fprintf(stderr, "backup: the checkpoint is there: backup --again %s %s\n", new_leaf, path);
        }
        if (avhdx_close(disk) < 0)
            r = complain();
    }
    if (fclose(stream) != 0 && r == 0)
        r = failed(path);
    if (r < 0)
        unlink(path);
    return r;
}

/* Writes length bytes at offset: from the stream, or zeros. */
static int restore(FILE *stream, int raw, uint64_t kind, uint64_t offset, uint64_t length)
{
    if (kind == ZERO) {
        if (fallocate(raw, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) == 0)
            return 0;
        memset(buf, 0, sizeof buf); /* not every file system can */
    }
    while (length > 0) {
        size_t count = length < sizeof buf ? (size_t)length : sizeof buf;
        ssize_t written;

        if (kind == DATA && fread(buf, count, 1, stream) != 1)
            return 1;
        for (size_t done = 0; done < count; done += (size_t)written)
            if ((written = pwrite(raw, buf + done, count - done, (off_t)(offset + done))) < 0)
                return -1;
        offset += count;
        length -= count;
    }
    return 0;
}

static int apply(const char *path, const char *raw_path)
{
    FILE *stream = fopen(path, "rb");
    uint64_t head[3], record[3] = { END, 0, 0 };
    int raw = -1, r = 1; /* 1: the stream is not whole */

    if (!stream)
        return failed(path);
    if (get(stream, head) == 0 && head[0] == MAGIC && head[1] <= INT64_MAX) {
        raw = open(raw_path, head[2] ? O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC : O_WRONLY | O_CLOEXEC, 0666);
        r = raw < 0 || ftruncate(raw, (off_t)head[1]) < 0 ? -1 : 0;
    }
    while (r == 0) {
        if (get(stream, record) < 0 || record[0] > ZERO || record[1] > head[1] || record[2] > head[1] - record[1])
            r = 1;
        else if (record[0] == END)
            break;
        else
            r = restore(stream, raw, record[0], record[1], record[2]);
    }
    if (r == 0 && fsync(raw) < 0)
        r = -1;
    if (r < 0)
        failed(raw_path);
    if (r > 0)
        fprintf(stderr, "backup: %s: not a stream, or cut short\n", path);
    if (raw >= 0) {
        close(raw);
        if (r != 0 && head[2])
            unlink(raw_path); /* made here, and not complete */
    }
    fclose(stream);
    return r == 0 ? 0 : -1;
}

int main(int argc, char **argv)
{
    int r;

    if (argc != 4) {
        fprintf(stderr, "usage: backup LEAF NEW_LEAF STREAM | --again NEW_LEAF STREAM | --apply STREAM RAW\n");
        return 2;
    }
    if (strcmp(argv[1], "--apply") == 0)
        r = apply(argv[2], argv[3]);
    else
        r = backup(strcmp(argv[1], "--again") == 0 ? NULL : argv[1], argv[2], argv[3]);
    return r < 0 ? 1 : 0;
}
