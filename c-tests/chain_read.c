/* A chain reads as its files, one over the other; as of each layer; and tells what is where. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <avhdx.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define OK(condition)                                                                                        \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%d: %s: %s\n", __LINE__, #condition, avhdx_error_message(avhdx_last_error())); \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

int main(void)
{
    char dir[] = "/tmp/avhdx-chain-XXXXXX", base[64], a[64], b[64];
    OK(mkdtemp(dir) != NULL);
    snprintf(base, sizeof base, "%s/base.vhdx", dir);
    snprintf(a, sizeof a, "%s/a.avhdx", dir);
    snprintf(b, sizeof b, "%s/b.avhdx", dir);
    static unsigned char buf[1 << 20], found[1 << 20];
    avhdx_disk *d;
    avhdx_opts *o = avhdx_opts_new();
    OK(avhdx_opts_parse(o, "size=8M,block-size=1M") == 0);
    OK(avhdx_create(base, o) == 0);
    avhdx_opts_free(o);
    OK(avhdx_open(&d, base, NULL) == 0);
    memset(buf, 1, sizeof buf);
    OK(avhdx_pwrite(d, buf, sizeof buf, 0, 0) == 0);
    OK(avhdx_checkpoint(d, a, NULL) == 0);
    memset(buf, 2, 4096);
    OK(avhdx_pwrite(d, buf, 4096, 4096, AVHDX_FUA) == 0);
    OK(avhdx_checkpoint(d, b, NULL) == 0);
    memset(buf, 3, 100);
    struct iovec iov[2] = {{buf, 50}, {buf + 50, 50}};
    OK(avhdx_pwritev(d, iov, 2, 4096 + 10, 0) == 0);
    OK(avhdx_close(d) == 0);

    OK(avhdx_open(&d, b, NULL) == 0);
    OK(avhdx_layer_count(d) == 3);
    OK(avhdx_get_size(d) == 8 << 20);
    OK(avhdx_pread(d, found, 12288, 0) == 0);
    OK(found[0] == 1 && found[4095] == 1 && found[4096] == 2 && found[4105] == 2 && found[4106] == 3);
    OK(found[4205] == 3 && found[4206] == 2 && found[8191] == 2 && found[8192] == 1);
    OK(avhdx_layer_pread(d, 1, found, 200, 4096) == 0);
    OK(found[0] == 2 && found[10] == 2);
    OK(avhdx_layer_pread(d, 2, found, 200, 4096) == 0);
    OK(found[0] == 1);
    memset(found, 9, sizeof found);
    OK(avhdx_pread(d, found, 512, (8 << 20) - 511) < 0);
    OK(avhdx_error_code(avhdx_last_error()) == AVHDX_ERR_RANGE && found[0] == 9);
    struct iovec in[2] = {{found, 4096}, {found + 4096, 4096}};
    OK(avhdx_preadv(d, in, 2, 4096) == 0);
    OK(found[0] == 2 && found[10] == 3 && found[4096] == 1);

    struct avhdx_extent extents[8];
    size_t n = 8;
    uint64_t processed;
    OK(avhdx_block_status(d, 0, 8 << 20, 0, extents, &n, &processed) == 0);
    OK(processed == 8 << 20 && n == 5);
    OK(extents[0].state == AVHDX_EXTENT_DATA && extents[0].layer == 2 && extents[0].length == 4096);
    OK(extents[1].layer == 0 && extents[1].length == 512 && extents[2].layer == 1);
    OK(extents[4].state == AVHDX_EXTENT_HOLE && extents[4].offset == 1 << 20);
    n = 8;
    OK(avhdx_block_status(d, 0, 8 << 20, AVHDX_STATUS_THIS_LAYER(1), extents, &n, &processed) == 0);
    OK(n == 3 && extents[0].state == AVHDX_EXTENT_HOLE && extents[1].offset == 4096 && extents[1].length == 4096);
    n = 8;
    OK(avhdx_block_status(d, 0, 8 << 20, AVHDX_STATUS_ONE, extents, &n, &processed) == 0 && n == 1);
    OK(processed == 4096);

    struct avhdx_info info = AVHDX_INFO_INIT;
    OK(avhdx_get_info(d, &info) == 0 && info.layer_count == 3 && info.disk_type == AVHDX_TYPE_DIFFERENCING);
    struct avhdx_layer_info leaf = AVHDX_LAYER_INFO_INIT, parent = AVHDX_LAYER_INFO_INIT;
    OK(avhdx_layer_info(d, 0, &leaf) == 0 && avhdx_layer_info(d, 1, &parent) == 0);
    OK(memcmp(leaf.parent_linkage, parent.data_write_guid, 16) == 0);
    OK(strcmp(avhdx_layer_path(d, 0), b) == 0 && avhdx_layer_path(d, 3) == NULL);
    OK(avhdx_layer_fd(d, 0) >= 0);
    char *json = avhdx_info_json(d);
    OK(json != NULL && strstr(json, "\"full-backing-filename\"") != NULL);
    avhdx_free(json);
    OK(avhdx_close(d) == 0);

    struct avhdx_probe probe = AVHDX_PROBE_INIT;
    OK(avhdx_probe(b, &probe) == 0 && memcmp(probe.parent_linkage, parent.data_write_guid, 16) == 0);
    const char *files[] = {b, a, base};
    OK(avhdx_open_chain(&d, files, 3, NULL) == 0);
    OK(avhdx_close(d) == 0);
    OK(unlink(base) == 0 && unlink(a) == 0 && unlink(b) == 0 && rmdir(dir) == 0);
    puts("chain read");
    return 0;
}
