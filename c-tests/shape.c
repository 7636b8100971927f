/* Compact, resize and metadata items change the file; the disk goes on, open. */
#include "check.h"

static const unsigned char one[16] = { 1 }, two[16] = { 2 };

static uint64_t file_size(const char *path)
{
    struct stat st;
    NEED(stat(path, &st) == 0);
    return (uint64_t)st.st_size;
}

static int cancel(void *user, uint64_t done, uint64_t total)
{
    (void)user;
    (void)done;
    (void)total;
    return 1;
}

static void compacting_shortens_the_file_and_the_disk_reads_the_same(void)
{
    avhdx_disk *disk;
    unsigned char *buf = malloc(8 * MIB), *again = malloc(8 * MIB);
    struct avhdx_layer_info before = AVHDX_LAYER_INFO_INIT, after = AVHDX_LAYER_INFO_INIT;
    struct avhdx_progress_cb stop = { cancel, NULL, NULL };
    uint64_t size;
    avhdx_opts *o;

    NEED(buf && again);
    NEED(create(tmp("compact.vhdx"), "size=16M,block-size=1M") == 0);
    NEED((disk = open_with(tmp("compact.vhdx"), "")) != NULL);
    fill(buf, 8 * MIB, 1);
    NEED(avhdx_pwrite(disk, buf, 8 * MIB, 0, 0) == 0);
    memset(buf, 0, 3 * MIB);
    NEED(avhdx_pwrite(disk, buf, 3 * MIB, 0, 0) == 0);
    NEED(avhdx_flush(disk) == 0);
    NEED(avhdx_layer_info(disk, 0, &before) == 0);
    CHECK_FAILS(avhdx_compact(disk, NULL, &stop), ECANCELED, AVHDX_ERR_CANCELLED);
    o = opts("mode=consume");
    CHECK_FAILS(avhdx_compact(disk, o, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    avhdx_opts_free(o);
    o = opts("mode=quick");
    CHECK_OK(avhdx_compact(disk, o, NULL));
    CHECK(file_size(tmp("compact.vhdx")) > 9 * MIB);
    avhdx_opts_free(o);
    o = opts("mode=full,rate=1G");
    CHECK_OK(avhdx_compact(disk, o, NULL));
    avhdx_opts_free(o);
    size = file_size(tmp("compact.vhdx"));
    CHECK_INT(size, 9 * MIB);
    CHECK_OK(avhdx_layer_info(disk, 0, &after));
    CHECK(memcmp(before.data_write_guid, after.data_write_guid, 16) == 0);
    CHECK_OK(avhdx_pread(disk, again, 8 * MIB, 0));
    CHECK(memcmp(buf, again, 8 * MIB) == 0);
    CHECK_OK(avhdx_pwrite(disk, buf + 4 * MIB, 4096, 0, AVHDX_FUA));
    CHECK_OK(avhdx_close(disk));
    CHECK_OK(errors_in(tmp("compact.vhdx")));
    free(buf);
    free(again);
}

static void a_fixed_disk_is_not_compacted(void)
{
    avhdx_disk *disk;

    NEED(create(tmp("fixed.vhdx"), "size=4M,block-size=1M,type=fixed") == 0);
    NEED((disk = open_with(tmp("fixed.vhdx"), "")) != NULL);
    CHECK_FAILS(avhdx_compact(disk, NULL, NULL), ENOTSUP, AVHDX_ERR_UNSUPPORTED);
    CHECK_OK(avhdx_resize(disk, 6 * MIB, NULL));
    CHECK_OK(avhdx_close(disk));
    CHECK_OK(errors_in(tmp("fixed.vhdx")));
}

static void resizing_guards_data(void)
{
    avhdx_disk *disk;
    uint64_t size = 7;
    unsigned char byte = 9;
    avhdx_opts *o = opts("unsafe=on");

    NEED(o != NULL);
    NEED(create(tmp("resize.vhdx"), "size=16M,block-size=1M") == 0);
    NEED((disk = open_with(tmp("resize.vhdx"), "")) != NULL);
    NEED(avhdx_pwrite(disk, &byte, 1, 5 * MIB, 0) == 0);
    CHECK_OK(avhdx_min_size(disk, &size));
    CHECK_INT(size, 5 * MIB + 512);
    CHECK_FAILS(avhdx_resize(disk, 5 * MIB, NULL), EINVAL, AVHDX_ERR_SHRINK_UNSAFE);
    CHECK_FAILS(avhdx_resize(disk, 5 * MIB + 1, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_OK(avhdx_resize(disk, size, NULL));
    CHECK_INT(avhdx_get_size(disk), size);
    CHECK_FAILS(avhdx_pread(disk, &byte, 1, size), EINVAL, AVHDX_ERR_RANGE);
    CHECK_OK(avhdx_resize(disk, 5 * MIB, o));
    CHECK_OK(avhdx_resize(disk, 32 * MIB, NULL));
    CHECK_OK(avhdx_pread(disk, &byte, 1, 5 * MIB));
    CHECK_INT(byte, 0);
    CHECK_OK(avhdx_close(disk));
    CHECK_OK(errors_in(tmp("resize.vhdx")));
    avhdx_opts_free(o);
}

static void a_disk_with_children_keeps_its_identity(void)
{
    avhdx_disk *disk;

    NEED(create(tmp("parent.vhdx"), "size=4M,block-size=1M") == 0);
    NEED((disk = open_with(tmp("parent.vhdx"), "")) != NULL);
    NEED(avhdx_checkpoint(disk, tmp("child.avhdx"), NULL) == 0);
    NEED(avhdx_close(disk) == 0);
    NEED((disk = open_with(tmp("parent.vhdx"), "")) != NULL);
    CHECK_FAILS(avhdx_resize(disk, 8 * MIB, NULL), EBUSY, AVHDX_ERR_HAS_CHILDREN);
    CHECK_FAILS(avhdx_reset_disk_id(disk, NULL), EBUSY, AVHDX_ERR_HAS_CHILDREN);
    CHECK_FAILS(avhdx_set_physical_sector_size(disk, 512), EBUSY, AVHDX_ERR_HAS_CHILDREN);
    CHECK_OK(avhdx_compact(disk, NULL, NULL));
    CHECK_OK(avhdx_close(disk));
    NEED((disk = open_with(tmp("child.avhdx"), "")) != NULL);
    CHECK_OK(avhdx_close(disk));
}

static void items_are_set_listed_read_and_removed(void)
{
    avhdx_disk *disk;
    unsigned char *large = malloc(MIB + 1), buf[8];
    char *list;

    NEED(large != NULL);
    memset(large, 5, MIB + 1);
    NEED(create(tmp("items.vhdx"), "size=4M,block-size=1M") == 0);
    NEED((disk = open_with(tmp("items.vhdx"), "")) != NULL);
    CHECK_OK(avhdx_meta_set(disk, one, "seven77", 7, 0));
    CHECK_OK(avhdx_meta_set(disk, two, large, MIB, AVHDX_META_DISK));
    CHECK_FAILS(avhdx_meta_set(disk, two, large, MIB + 1, 0), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_meta_set(disk, two, large, 1, 2), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_INT(avhdx_meta_get(disk, one, buf, sizeof buf), 7);
    CHECK(memcmp(buf, "seven77", 7) == 0);
    CHECK_INT(avhdx_meta_get(disk, two, NULL, 0), MIB);
    CHECK_OK(avhdx_checkpoint(disk, tmp("items.avhdx"), NULL));
    CHECK_INT(avhdx_meta_get(disk, two, buf, sizeof buf), MIB);
    CHECK_FAILS(avhdx_meta_get(disk, one, buf, sizeof buf), EINVAL, AVHDX_ERR_ARGUMENT);
    list = avhdx_meta_list(disk);
    CHECK_HAS(list, "\"of-disk\":true");
    avhdx_free(list);
    CHECK_OK(avhdx_meta_delete(disk, two));
    CHECK_FAILS(avhdx_meta_delete(disk, two), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_OK(avhdx_close(disk));
    CHECK_OK(errors_in(tmp("items.vhdx")));
    CHECK_OK(errors_in(tmp("items.avhdx")));
    free(large);
}

static void identity_and_sector_size_change(void)
{
    static const unsigned char zero[16];
    struct avhdx_layer_info info = AVHDX_LAYER_INFO_INIT;
    avhdx_disk *disk;

    NEED(create(tmp("id.vhdx"), "size=4M,block-size=1M") == 0);
    NEED((disk = open_with(tmp("id.vhdx"), "")) != NULL);
    CHECK_OK(avhdx_reset_disk_id(disk, two));
    CHECK_OK(avhdx_set_physical_sector_size(disk, 512));
    CHECK_OK(avhdx_layer_info(disk, 0, &info));
    CHECK(memcmp(info.virtual_disk_id, two, 16) == 0);
    CHECK_INT(info.physical_sector_size, 512);
    CHECK_OK(avhdx_reset_disk_id(disk, NULL));
    CHECK_OK(avhdx_layer_info(disk, 0, &info));
    CHECK(memcmp(info.virtual_disk_id, two, 16) != 0);
    CHECK_FAILS(avhdx_reset_disk_id(disk, zero), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_set_physical_sector_size(disk, 1024), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_OK(avhdx_close(disk));
}

int main(void)
{
    RUN(compacting_shortens_the_file_and_the_disk_reads_the_same);
    RUN(a_fixed_disk_is_not_compacted);
    RUN(resizing_guards_data);
    RUN(a_disk_with_children_keeps_its_identity);
    RUN(items_are_set_listed_read_and_removed);
    RUN(identity_and_sector_size_change);
    return check_end();
}
