/* NULL where it is not allowed is -EINVAL that names the parameter, never a crash; where it is, nothing happens. */
#include "check.h"

static void names(int result, const char *parameter)
{
    CHECK(result == -EINVAL);
    CHECK(avhdx_error_code(avhdx_last_error()) == AVHDX_ERR_ARGUMENT);
    CHECK(strstr(avhdx_error_message(avhdx_last_error()), parameter) != NULL);
}

int main(void)
{
    check_start();
    avhdx_disk *d;
    char buf[512];
    struct avhdx_info info = AVHDX_INFO_INIT;
    size_t n = 1;
    uint64_t processed;
    names(avhdx_open(NULL, "x", NULL), "d");
    names(avhdx_open(&d, NULL, NULL), "file");
    CHECK(d == NULL);
    names(avhdx_open_chain(&d, NULL, 1, NULL), "files");
    names(avhdx_open_fd(&d, -1, "x", NULL), "fd");
    names(avhdx_probe(NULL, NULL), "file");
    names(avhdx_create(NULL, NULL), "file");
    names(avhdx_pread(NULL, buf, 512, 0), "d");
    names(avhdx_pwrite(NULL, buf, 512, 0, 0), "d");
    names(avhdx_flush(NULL), "d");
    names(avhdx_zero(NULL, 0, 0, 0), "d");
    names(avhdx_discard(NULL, 0, 0, 0), "d");
    names((int)avhdx_get_size(NULL), "d");
    names(avhdx_get_info(NULL, &info), "d");
    names(avhdx_checkpoint(NULL, "x", NULL), "d");
    names(avhdx_merge(NULL, 0, 1, NULL, NULL), "d");
    names(avhdx_merge_path(NULL, NULL, NULL, NULL), "child");
    names(avhdx_check(NULL, NULL, NULL, NULL), "out");
    names(avhdx_opts_set_str(NULL, "lock", "on"), "o");
    names(avhdx_opts_parse(NULL, ""), "o");
    names(avhdx_opts_set_resolver(NULL, NULL), "o");
    names(avhdx_opts_set_io(NULL, NULL, NULL), "o");
    CHECK(avhdx_layer_path(NULL, 0) == NULL);
    CHECK(avhdx_info_json(NULL) == NULL);
    CHECK(avhdx_error_dup(NULL) == NULL);
    CHECK(avhdx_error_message(NULL) == NULL);
    CHECK(avhdx_close(NULL) == 0);
    avhdx_abort(NULL);
    avhdx_free(NULL);
    avhdx_opts_free(NULL);
    avhdx_error_free(NULL);

    make_disk("disk.vhdx", 4);
    CHECK(avhdx_open(&d, in_dir("disk.vhdx"), NULL) == 0);
    names(avhdx_pread(d, NULL, 512, 0), "buf");
    names(avhdx_pwrite(d, NULL, 512, 0, 0), "buf");
    CHECK(avhdx_pread(d, NULL, 0, 0) == 0);
    names(avhdx_preadv(d, NULL, 1, 0), "iov");
    names(avhdx_get_info(d, NULL), "out");
    names(avhdx_checkpoint(d, NULL, NULL), "new_leaf");
    names(avhdx_block_status(d, 0, 512, 0, NULL, &n, &processed), "extents");
    names(avhdx_block_status(d, 0, 512, 0, NULL, NULL, &processed), "n");
    names(avhdx_pwrite(d, buf, 512, 0, 0x80), "0x80");
    names(avhdx_pread(d, buf, SIZE_MAX, 0), "too many");
    CHECK(avhdx_close(d) == 0);
    return 0;
}
