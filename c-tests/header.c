/* The header first and alone: it must bring what it needs, and nothing in it may offend a strict compiler. */
#include <avhdx.h>

static int use(void)
{
    struct avhdx_probe probe = AVHDX_PROBE_INIT;
    struct avhdx_limits limits = AVHDX_LIMITS_INIT;
    struct avhdx_info info = AVHDX_INFO_INIT;
    struct avhdx_layer_info layer = AVHDX_LAYER_INFO_INIT;
    struct avhdx_check check = AVHDX_CHECK_INIT;
    struct avhdx_progress job = AVHDX_PROGRESS_INIT;
    struct avhdx_io_ops ops = AVHDX_IO_OPS_INIT;
    avhdx_progress_cb progress = { NULL, NULL, NULL };
    avhdx_disk *disk = NULL;
    avhdx_opts *opts = avhdx_opts_new();
    const avhdx_error *error;
    uint32_t flags = AVHDX_THIS_LAYER(3) | AVHDX_ONE | AVHDX_FUA;
    uint64_t none = AVHDX_NO_OFFSET;
    int r = avhdx_open(&disk, "/nonexistent/avhdx", opts);

    error = avhdx_last_error();
    avhdx_opts_free(opts);
    return r < 0 && disk == NULL && avhdx_error_code(error) == AVHDX_ERR_IO
        && probe.struct_size == sizeof probe && limits.struct_size == sizeof limits && info.struct_size == sizeof info
        && layer.struct_size == sizeof layer && check.struct_size == sizeof check && ops.struct_size == sizeof ops
        && job.struct_size == sizeof job && ops.list == NULL && progress.fn == NULL && flags == 0x30109 && none + 1 == 0
        && avhdx_version()[0] == '0' + AVHDX_VERSION_MAJOR;
}

int main(void)
{
    return !use();
}
