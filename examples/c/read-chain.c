/* Describes a chain, says where each part of the disk comes from, and prints a range of it. No byte of any file
 * changes.
 *
 *     read-chain LEAF [OFFSET LENGTH]
 *
 * Build with: cc -o read-chain read-chain.c $(pkg-config --cflags --libs avhdx)
 */
#include <avhdx.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What failed, and what to do about it, are in the error object of this thread until its next failing call. */
static int complain(void)
{
    const char *cause = avhdx_error_cause(NULL), *hint = avhdx_error_hint(NULL);

    fprintf(stderr, "read-chain: %s%s%s\n", avhdx_error_message(NULL), *cause ? ": " : "", cause);
    if (*hint)
        fprintf(stderr, "read-chain: %s\n", hint);
    return -1;
}

/* A GUID as the tools of Windows write it: the first three fields are little-endian in the 16 stored bytes. */
static const char *guid_text(const uint8_t guid[16], char text[37])
{
    snprintf(text, 37, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
             guid[3], guid[2], guid[1], guid[0], guid[5], guid[4], guid[7], guid[6],
             guid[8], guid[9], guid[10], guid[11], guid[12], guid[13], guid[14], guid[15]);
    return text;
}

static int print_layers(avhdx_disk *disk)
{
    static const char *const types[] = { "unknown", "fixed", "dynamic", "differencing" };
    struct avhdx_info all = AVHDX_INFO_INIT; /* always: it tells the library the size */
    char text[37];

    if (avhdx_get_info(disk, &all) < 0)
        return complain();
    printf("disk %s: %" PRIu64 " bytes in %" PRIu32 " layers%s\n", guid_text(all.virtual_disk_id, text),
           all.virtual_size, all.layer_count, all.flags & AVHDX_INFO_PENDING_MERGE ? ", a merge was interrupted" : "");
    for (uint32_t i = 0; i < all.layer_count; i++) {
        struct avhdx_layer_info info = AVHDX_LAYER_INFO_INIT;
        const char *path = avhdx_layer_path(disk, i);

        if (!path || avhdx_layer_info(disk, i, &info) < 0)
            return complain();
        printf("layer %" PRIu32 ": %s\n", i, path);
        printf("    %s, %" PRIu64 " bytes, blocks of %" PRIu32 ", sectors of %" PRIu32 "%s\n",
               types[info.type < 4 ? info.type : 0], info.virtual_size, info.block_size, info.logical_sector_size,
               info.flags & AVHDX_INFO_DIRTY_LOG ? ", not closed cleanly" : "");
        printf("    file: %" PRIu64 " bytes, %" PRIu64 " on disk\n", info.file_size, info.actual_size);
        printf("    content %s", guid_text(info.data_write_guid, text));
        if (info.flags & AVHDX_INFO_HAS_PARENT)
            printf(", on %s", guid_text(info.parent_linkage, text));
        putchar('\n');
    }
    return 0;
}

static int print_extents(avhdx_disk *disk, uint64_t size)
{
    static const char *const states[] = { "?", "data", "zero", "hole", "unmapped", "undefined" };
    uint64_t at = 0;

    while (at < size) {
        struct avhdx_extent extents[64];
        size_t n = sizeof extents / sizeof extents[0]; /* in: room; out: how many there are */
        uint64_t processed;

        if (avhdx_block_status(disk, at, size - at, 0, extents, &n, &processed) < 0)
            return complain();
        for (size_t i = 0; i < n; i++) {
            const struct avhdx_extent *e = &extents[i];

            printf("extent %" PRIu64 " +%" PRIu64 " %s", e->offset, e->length, states[e->state < 6 ? e->state : 0]);
            if (e->state == AVHDX_STATE_DATA)
                printf(" layer %" PRIu32 " at %" PRIu64, e->layer, e->file_offset);
            putchar('\n');
        }
        at += processed; /* not more than the array had room for */
    }
    return 0;
}

/* The range in pieces, so that memory does not grow with what is asked for. */
static int print_range(avhdx_disk *disk, uint64_t offset, uint64_t length)
{
    unsigned char buf[4096];

    while (length > 0) {
        size_t count = length < sizeof buf ? (size_t)length : sizeof buf;

        if (avhdx_pread(disk, buf, count, offset) < 0)
            return complain();
        for (size_t line = 0; line < count; line += 16) {
            printf("%012" PRIx64, offset + line);
            for (size_t i = line; i < line + 16 && i < count; i++)
                printf(" %02x", buf[i]);
            putchar('\n');
        }
        offset += count;
        length -= count;
    }
    return 0;
}

static int number(const char *text, uint64_t *value)
{
    char *end;

    errno = 0;
    *value = strtoull(text, &end, 0);
    return isdigit((unsigned char)*text) && *end == '\0' && errno == 0 ? 0 : -1;
}

int main(int argc, char **argv)
{
    uint64_t offset = 0, length = 0;
    avhdx_disk *disk = NULL;
    avhdx_opts *opts;
    int64_t size;
    int r;

    if ((argc != 2 && argc != 4) || (argc == 4 && (number(argv[2], &offset) < 0 || number(argv[3], &length) < 0))) {
        fprintf(stderr, "usage: read-chain LEAF [OFFSET LENGTH]\n");
        return 2;
    }

    opts = avhdx_opts_new();
    r = avhdx_opts_set_bool(opts, "read-only", 1);
    if (r == 0)
        r = avhdx_open(&disk, argv[1], opts);
    avhdx_opts_free(opts); /* the disk does not need them */
    if (r < 0) {
        complain();
        return 1;
    }

    size = avhdx_get_size(disk);
    r = size < 0 ? complain() : print_layers(disk);
    if (r == 0)
        r = print_extents(disk, (uint64_t)size);
    if (r == 0)
        r = print_range(disk, offset, length);
    if (avhdx_close(disk) < 0) /* frees the disk, also when it fails */
        r = complain();
    if (fflush(stdout) != 0 || ferror(stdout)) {
        perror("read-chain: standard output");
        r = -1;
    }
    return r < 0 ? 1 : 0;
}
