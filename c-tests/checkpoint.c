/* A checkpoint seals what is there; the disk goes on. */
#include "check.h"

int main(void)
{
    check_start();
    avhdx_disk *d;
    make_disk("base.vhdx", 4);
    CHECK(avhdx_open(&d, in_dir("base.vhdx"), NULL) == 0);
    fill(d, 0, MIB, 1);
    avhdx_opts *o = avhdx_opts_new();
    CHECK(avhdx_opts_parse(o, "block-size=1M") == 0);
    CHECK(avhdx_checkpoint(d, in_dir("a.avhdx"), o) == 0);
    avhdx_opts_free(o);
    fill(d, 4096, 4096, 2);
    CHECK_FAILS(avhdx_checkpoint(d, in_dir("a.avhdx"), NULL), EEXIST, AVHDX_ERR_IO);
    CHECK_FAILS(avhdx_checkpoint(d, in_dir("no/such/dir.avhdx"), NULL), ENOENT, AVHDX_ERR_IO);
    fill(d, 8192, 4096, 3);
    expect(d, 0, 4096, 1);
    expect(d, 4096, 4096, 2);
    expect(d, 8192, 4096, 3);
    CHECK(avhdx_layer_count(d) == 2);
    CHECK(avhdx_close(d) == 0);

    /* The base did not change and can be read by others while a child is in use. */
    CHECK(avhdx_open(&d, in_dir("a.avhdx"), NULL) == 0);
    avhdx_disk *base;
    o = avhdx_opts_new();
    CHECK(avhdx_opts_parse(o, "read-only") == 0);
    CHECK(avhdx_open(&base, in_dir("base.vhdx"), o) == 0);
    expect(base, 0, MIB, 1);
    CHECK(avhdx_close(base) == 0);
    avhdx_opts_free(o);
    CHECK_FAILS(avhdx_open(&base, in_dir("base.vhdx"), NULL), EAGAIN, AVHDX_ERR_LOCKED);
    CHECK(avhdx_close(d) == 0);

    struct avhdx_check report = AVHDX_CHECK_INIT;
    CHECK(avhdx_check(in_dir("a.avhdx"), NULL, &report, NULL) == 0);
    CHECK(report.errors == 0 && report.warnings == 0 && report.allocated_blocks == 1);
    return 0;
}
