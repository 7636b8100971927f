/* Sizes and offsets are ABI: they never change. */
#include "check.h"

#define SIZE(type, size) _Static_assert(sizeof(struct type) == (size), #type)
#define AT(type, member, offset) _Static_assert(offsetof(struct type, member) == (offset), #type "." #member)

SIZE(avhdx_extent, 32);
AT(avhdx_extent, file_offset, 16);
AT(avhdx_extent, state, 24);
AT(avhdx_extent, layer, 28);
SIZE(avhdx_probe, 80);
AT(avhdx_probe, virtual_size, 8);
AT(avhdx_probe, virtual_disk_id, 32);
AT(avhdx_probe, parent_linkage, 64);
SIZE(avhdx_limits, 24);
SIZE(avhdx_info, 56);
AT(avhdx_info, virtual_size, 8);
AT(avhdx_info, virtual_disk_id, 40);
SIZE(avhdx_layer_info, 136);
AT(avhdx_layer_info, log_size, 48);
AT(avhdx_layer_info, parent_linkage2, 120);
SIZE(avhdx_check, 56);
SIZE(avhdx_issue, 48);
SIZE(avhdx_progress_cb, 24);
SIZE(avhdx_io_ops, 112);
AT(avhdx_io_ops, open, 8);
AT(avhdx_io_ops, lock, 104);

int main(void)
{
    check_start();
    /* A caller that knows less gets what it knows; one that knows more gets zeros. */
    make_disk("disk.vhdx", 4);
    avhdx_disk *d;
    CHECK(avhdx_open(&d, in_dir("disk.vhdx"), NULL) == 0);
    struct { struct avhdx_limits known; uint32_t more; uint32_t beyond; } limits;
    memset(&limits, 0xEE, sizeof limits);
    limits.known.struct_size = sizeof limits.known + 4;
    CHECK(avhdx_get_limits(d, &limits.known) == 0);
    CHECK(limits.known.block_size == MIB && limits.more == 0 && limits.beyond == 0xEEEEEEEEu);
    memset(&limits, 0xEE, sizeof limits);
    limits.known.struct_size = 8;
    CHECK(avhdx_get_limits(d, &limits.known) == 0);
    CHECK(limits.known.logical_sector_size == 512 && limits.known.physical_sector_size == 0xEEEEEEEEu);
    limits.known.struct_size = 0;
    CHECK_FAILS(avhdx_get_limits(d, &limits.known), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK(avhdx_close(d) == 0);
    return 0;
}
