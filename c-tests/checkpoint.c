/* A checkpoint seals what is there; the disk goes on in a new file, and the old state can still be read. */
#include "check.h"

static avhdx_disk *disk;

static void seals_and_goes_on(void)
{
    unsigned char buf[4096];

    memset(buf, 1, sizeof buf);
    CHECK_OK(avhdx_pwrite(disk, buf, sizeof buf, 0, 0));
    CHECK_OK(avhdx_checkpoint(disk, tmp("a.avhdx"), NULL));
    CHECK_INT(avhdx_layer_count(disk), 2);
    CHECK_STR(avhdx_layer_path(disk, 0), tmp("a.avhdx"));
    CHECK_STR(avhdx_layer_path(disk, 1), tmp("base.vhdx"));
    CHECK_OK(avhdx_pread(disk, buf, sizeof buf, 0));
    CHECK(all(buf, sizeof buf, 1));
    memset(buf, 2, sizeof buf);
    CHECK_OK(avhdx_pwrite(disk, buf, sizeof buf, 0, AVHDX_FUA));
    CHECK_OK(avhdx_layer_pread(disk, 1, buf, sizeof buf, 0));
    CHECK(all(buf, sizeof buf, 1));
    CHECK_OK(errors_in(tmp("base.vhdx")));
}

static void never_replaces_a_file(void)
{
    CHECK_INT(avhdx_checkpoint(disk, tmp("base.vhdx"), NULL), -EEXIST);
    CHECK_INT(avhdx_layer_count(disk), 2);
    CHECK_INT(avhdx_checkpoint(disk, tmp("no/such/dir/b.avhdx"), NULL), -ENOENT);
    CHECK_INT(avhdx_layer_count(disk), 2);
}

static void block_size_is_an_option(void)
{
    struct avhdx_layer_info info = AVHDX_LAYER_INFO_INIT;
    avhdx_opts *o = opts("block-size=4M");

    CHECK_OK(avhdx_checkpoint(disk, tmp("b.avhdx"), o));
    CHECK_OK(avhdx_layer_info(disk, 0, &info));
    CHECK_INT(info.block_size, 4 * MIB);
    CHECK_INT(info.type, AVHDX_TYPE_DIFFERENCING);
    avhdx_opts_free(o);
    o = opts("block-size=3M");
    CHECK_FAILS(avhdx_checkpoint(disk, tmp("c.avhdx"), o), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK(!exists(tmp("c.avhdx")));
    avhdx_opts_free(o);
}

static void path_of_a_layer_lives_with_the_disk(void)
{
    const char *base = avhdx_layer_path(disk, 2);
    char before[256];

    strcpy(before, base);
    CHECK_OK(avhdx_checkpoint(disk, tmp("d.avhdx"), NULL));
    CHECK_STR(base, before);
    CHECK(avhdx_layer_path(disk, 3) == base);
}

static void reopens_as_a_chain(void)
{
    unsigned char buf[4096];

    CHECK_OK(avhdx_close(disk));
    NEED((disk = open_with(tmp("d.avhdx"), "")) != NULL);
    CHECK_INT(avhdx_layer_count(disk), 4);
    CHECK_OK(avhdx_pread(disk, buf, sizeof buf, 0));
    CHECK(all(buf, sizeof buf, 2));
    CHECK_OK(errors_in(tmp("a.avhdx")));
    CHECK_OK(errors_in(tmp("b.avhdx")));
}

int main(void)
{
    NEED(create(tmp("base.vhdx"), "size=16M,block-size=1M") == 0);
    NEED((disk = open_with(tmp("base.vhdx"), "")) != NULL);
    RUN(seals_and_goes_on);
    RUN(never_replaces_a_file);
    RUN(block_size_is_an_option);
    RUN(path_of_a_layer_lives_with_the_disk);
    RUN(reopens_as_a_chain);
    CHECK_OK(avhdx_close(disk));
    return check_end();
}
