/* Takes a checkpoint of a disk and writes some changes to the new leaf: change DISK NEW-LEAF SEED */
#include <avhdx.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failed(const char *what)
{
    const avhdx_error *e = avhdx_last_error();
    const char *hint = avhdx_error_hint(e);
    fprintf(stderr, "%s: %s\n%s\n", what, avhdx_error_message(e), hint ? hint : "");
    return 1;
}

int main(int argc, char **argv)
{
    static unsigned char data[256 * 1024];
    avhdx_disk *d;
    if (argc != 4) {
        fprintf(stderr, "usage: %s DISK NEW-LEAF SEED\n", argv[0]);
        return 2;
    }
    srand((unsigned)atoi(argv[3]));
    if (avhdx_open(&d, argv[1], NULL) < 0)
        return failed("open");
    if (avhdx_checkpoint(d, argv[2], NULL) < 0)
        return failed("checkpoint");
    uint64_t size = (uint64_t)avhdx_get_size(d);
    /* Files' worth of changes: in the upper half, which the file system does not use yet, and a little anywhere. */
    for (int i = 0; i < 24; i++) {
        size_t len = 4096u * (1u + (unsigned)rand() % 64u);
        uint64_t at = size / 2 + (uint64_t)rand() % (size / 2 / 4096 - 64) * 4096;
        memset(data, rand(), len);
        if (avhdx_pwrite(d, data, len, at, 0) < 0)
            return failed("write");
    }
    if (avhdx_zero(d, size / 2 + 8 * 1024 * 1024, 2 * 1024 * 1024, AVHDX_MAY_UNMAP) < 0 || avhdx_flush(d) < 0)
        return failed("zero");
    if (avhdx_close(d) < 0)
        return failed("close");
    return 0;
}
