/* A chain of three files reads as one disk; each layer reads as it was; block status says who provides what, and a caller
 * can read the bytes itself from there. */
#include "check.h"

#define DISK_SIZE (16 * MIB)

static avhdx_disk *disk;
static unsigned char *model[3]; /* what the disk was at each layer, 0 = leaf */

static void put(uint64_t offset, size_t len, uint64_t seed)
{
    fill(model[0] + offset, len, seed);
    NEED(avhdx_pwrite(disk, model[0] + offset, len, offset, 0) == 0);
}

static void seal(const char *name)
{
    memcpy(model[2], model[1], DISK_SIZE);
    memcpy(model[1], model[0], DISK_SIZE);
    NEED(avhdx_checkpoint(disk, tmp(name), NULL) == 0);
}

static void make(void)
{
    int i;

    for (i = 0; i < 3; i++)
        NEED((model[i] = calloc(1, DISK_SIZE)) != NULL);
    NEED(create(tmp("base.vhdx"), "size=16M,block-size=1M") == 0);
    NEED((disk = open_with(tmp("base.vhdx"), "")) != NULL);
    put(0, 3 * MIB, 1);
    put(8 * MIB + 1000, 100000, 2);
    seal("a.avhdx");
    put(MIB / 2, MIB, 3);
    NEED(avhdx_zero(disk, 2 * MIB, MIB / 2, 0) == 0);
    memset(model[0] + 2 * MIB, 0, MIB / 2);
    seal("b.avhdx");
    put(8 * MIB + 513, 7, 4);
    put(15 * MIB, MIB, 5);
    NEED(avhdx_close(disk) == 0);
    NEED((disk = open_with(tmp("b.avhdx"), "read-only")) != NULL);
}

static void described(void)
{
    struct avhdx_info info = AVHDX_INFO_INIT;
    struct avhdx_layer_info layer = AVHDX_LAYER_INFO_INIT, parent = AVHDX_LAYER_INFO_INIT;
    struct avhdx_limits limits = AVHDX_LIMITS_INIT;
    struct avhdx_probe probe = AVHDX_PROBE_INIT;
    const char *path;
    char *json;

    CHECK_INT(avhdx_get_size(disk), DISK_SIZE);
    CHECK_INT(avhdx_layer_count(disk), 3);
    CHECK_OK(avhdx_get_info(disk, &info));
    CHECK_INT(info.struct_size, sizeof info);
    CHECK_INT(info.type, AVHDX_TYPE_DIFFERENCING);
    CHECK_INT(info.virtual_size, DISK_SIZE);
    CHECK_INT(info.layer_count, 3);
    CHECK_INT(info.logical_sector_size, 512);
    CHECK(info.flags & AVHDX_INFO_READ_ONLY);
    CHECK(info.flags & AVHDX_INFO_HAS_PARENT);
    CHECK_OK(avhdx_layer_info(disk, 0, &layer));
    CHECK_OK(avhdx_layer_info(disk, 1, &parent));
    CHECK(memcmp(layer.parent_linkage, parent.data_write_guid, 16) == 0);
    CHECK(memcmp(layer.virtual_disk_id, info.virtual_disk_id, 16) == 0);
    CHECK_OK(avhdx_layer_info(disk, 2, &parent));
    CHECK_INT(parent.type, AVHDX_TYPE_DYNAMIC);
    CHECK_INT(parent.block_size, MIB);
    CHECK_INT(parent.flags, 0);
    CHECK(parent.file_size > 4 * MIB && parent.actual_size > 0);
    CHECK_FAILS(avhdx_layer_info(disk, 3, &parent), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_OK(avhdx_get_limits(disk, &limits));
    CHECK_INT(limits.logical_sector_size, 512);
    CHECK(limits.preferred >= 512 && limits.discard_granularity >= 512);
    CHECK_OK(avhdx_probe(tmp("b.avhdx"), &probe));
    CHECK_INT(probe.type, AVHDX_TYPE_DIFFERENCING);
    CHECK(memcmp(probe.parent_linkage, layer.parent_linkage, 16) == 0);

    path = avhdx_layer_path(disk, 2);
    CHECK_HAS(path, "base.vhdx");
    CHECK(path == avhdx_layer_path(disk, 2));
    CHECK_STR(avhdx_layer_path(disk, 0), tmp("b.avhdx"));
    CHECK(avhdx_layer_path(disk, 9) == NULL);
    CHECK_INT(avhdx_error_code(NULL), AVHDX_ERR_ARGUMENT);

    json = avhdx_info_json(disk);
    CHECK_HAS(json, "\"virtual-size\":16777216");
    CHECK_HAS(json, "base.vhdx");
    avhdx_free(json);
}

static void all_bytes_of_all_layers(void)
{
    unsigned char *buf = malloc(DISK_SIZE);
    uint32_t layer;
    uint64_t state = 9;
    int i;

    NEED(buf != NULL);
    CHECK_OK(avhdx_pread(disk, buf, DISK_SIZE, 0));
    CHECK(memcmp(buf, model[0], DISK_SIZE) == 0);
    for (layer = 0; layer < 3; layer++) {
        memset(buf, 0xaa, DISK_SIZE);
        CHECK_OK(avhdx_layer_pread(disk, layer, buf, DISK_SIZE, 0));
        CHECK(memcmp(buf, model[layer], DISK_SIZE) == 0);
    }
    CHECK_FAILS(avhdx_layer_pread(disk, 3, buf, 1, 0), EINVAL, AVHDX_ERR_ARGUMENT);
    for (i = 0; i < 300; i++) {
        size_t len = check_random(&state) % 9000;
        uint64_t at = check_random(&state) % (DISK_SIZE - len);
        CHECK_OK(avhdx_pread(disk, buf, len, at));
        CHECK(memcmp(buf, model[0] + at, len) == 0);
    }
    free(buf);
}

static void extents_lead_to_the_bytes(void)
{
    unsigned char *buf = malloc(DISK_SIZE);
    uint64_t at = 0;

    NEED(buf != NULL);
    while (at < DISK_SIZE) {
        struct avhdx_extent extents[3];
        uint64_t processed, expected = at;
        size_t n = 3, i;

        NEED(avhdx_block_status(disk, at, DISK_SIZE - at, 0, extents, &n, &processed) == 0);
        NEED(n >= 1 && n <= 3 && processed > 0);
        for (i = 0; i < n; i++) {
            const struct avhdx_extent *e = &extents[i];
            CHECK_INT(e->offset, expected);
            CHECK(e->length > 0 && e->layer < 3);
            expected += e->length;
            if (e->state == AVHDX_STATE_DATA) {
                int fd = avhdx_layer_fd(disk, e->layer);
                CHECK(fd >= 0);
                CHECK_INT(pread(fd, buf, e->length, (off_t)e->file_offset), e->length);
                CHECK(memcmp(buf, model[0] + e->offset, e->length) == 0);
            } else {
                CHECK_INT(e->file_offset == AVHDX_NO_OFFSET, 1);
                CHECK(all(model[0] + e->offset, e->length, 0));
            }
        }
        CHECK_INT(expected, at + processed);
        at += processed;
    }
    free(buf);
}

static void status_of_one_layer(void)
{
    struct avhdx_extent e[8];
    uint64_t processed;
    size_t n = 8;

    /* The leaf holds nothing in the first half MiB; the base does. */
    CHECK_OK(avhdx_block_status(disk, 0, MIB / 2, AVHDX_THIS_LAYER(0), e, &n, &processed));
    CHECK_INT(n, 1);
    CHECK_INT(e[0].state, AVHDX_STATE_HOLE);
    CHECK_INT(e[0].length, MIB / 2);
    n = 8;
    CHECK_OK(avhdx_block_status(disk, 0, MIB / 2, AVHDX_THIS_LAYER(2) | AVHDX_ONE, e, &n, &processed));
    CHECK_INT(n, 1);
    CHECK_INT(e[0].state, AVHDX_STATE_DATA);
    CHECK_INT(e[0].layer, 2);
    n = 8;
    CHECK_FAILS(avhdx_block_status(disk, 0, 1, AVHDX_THIS_LAYER(3), e, &n, &processed), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_block_status(disk, 0, 1, 0x40, e, &n, &processed), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_HAS(avhdx_error_message(NULL), "0x40");
    CHECK_FAILS(avhdx_block_status(disk, 0, DISK_SIZE + 1, 0, e, &n, &processed), EINVAL, AVHDX_ERR_RANGE);
    n = 0;
    CHECK_FAILS(avhdx_block_status(disk, 0, 1, 0, e, &n, &processed), EINVAL, AVHDX_ERR_ARGUMENT);
}

static void structures_of_another_size(void)
{
    struct {
        struct avhdx_limits known;
        uint32_t newer[4];
    } longer;
    uint32_t shorter[4];

    memset(&longer, 0xee, sizeof longer);
    longer.known.struct_size = sizeof longer;
    CHECK_OK(avhdx_get_limits(disk, &longer.known));
    CHECK_INT(longer.known.struct_size, sizeof longer);
    CHECK_INT(longer.known.logical_sector_size, 512);
    CHECK(all((unsigned char *)longer.newer, sizeof longer.newer, 0));

    memset(shorter, 0xee, sizeof shorter);
    shorter[0] = 8;
    CHECK_OK(avhdx_get_limits(disk, (struct avhdx_limits *)(void *)shorter));
    CHECK_INT(shorter[0], 8);
    CHECK_INT(shorter[1], 512);
    CHECK_INT(shorter[2], 0xeeeeeeee);
}

static void explicit_chain(void)
{
    const char *paths[3];
    avhdx_disk *other;
    unsigned char buf[512];

    paths[0] = tmp("b.avhdx");
    paths[1] = tmp("a.avhdx");
    paths[2] = tmp("base.vhdx");
    {
        avhdx_opts *o = opts("read-only");
        CHECK_OK(avhdx_open_chain(&other, paths, 3, o));
        CHECK_INT(avhdx_layer_count(other), 3);
        CHECK_OK(avhdx_pread(other, buf, 512, 8 * MIB + 512));
        CHECK(memcmp(buf, model[0] + 8 * MIB + 512, 512) == 0);
        CHECK_OK(avhdx_close(other));
        /* In the wrong order, or with one missing, it is not that chain. */
        paths[1] = tmp("base.vhdx");
        paths[2] = tmp("a.avhdx");
        CHECK_FAILS(avhdx_open_chain(&other, paths, 3, o), ESTALE, AVHDX_ERR_PARENT_ID_MISMATCH);
        CHECK_FAILS(avhdx_open_chain(&other, paths, 1, o), ENOENT, AVHDX_ERR_PARENT_NOT_FOUND);
        avhdx_opts_free(o);
    }
}

int main(void)
{
    make();
    RUN(described);
    RUN(all_bytes_of_all_layers);
    RUN(extents_lead_to_the_bytes);
    RUN(status_of_one_layer);
    RUN(structures_of_another_size);
    RUN(explicit_chain);
    CHECK_OK(avhdx_close(disk));
    free(model[0]);
    free(model[1]);
    free(model[2]);
    return check_end();
}
