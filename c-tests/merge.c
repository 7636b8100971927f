/* Merging: live, cancelled, finished, refused. */
#include "check.h"

static int freed;

static void count_free(void *user)
{
    (void)user;
    freed++;
}

static int stop(void *user, uint64_t done, uint64_t total)
{
    (void)user;
    CHECK(done <= total);
    return 1;
}

static int go_on(void *user, uint64_t done, uint64_t total)
{
    (void)total;
    *(uint64_t *)user = done;
    return 0;
}

static avhdx_disk *make_chain(void)
{
    avhdx_disk *d;
    make_disk("base.vhdx", 8);
    CHECK(avhdx_open(&d, in_dir("base.vhdx"), NULL) == 0);
    fill(d, 0, 2 * MIB, 1);
    CHECK(avhdx_checkpoint(d, in_dir("a.avhdx"), NULL) == 0);
    fill(d, MIB, MIB, 2);
    CHECK(avhdx_checkpoint(d, in_dir("b.avhdx"), NULL) == 0);
    fill(d, 3 * MIB - 4096, 8192, 3);
    return d;
}

static void content(avhdx_disk *d)
{
    expect(d, 0, MIB, 1);
    expect(d, MIB, MIB, 2);
    expect(d, 2 * MIB, MIB - 4096, 0);
    expect(d, 3 * MIB - 4096, 8192, 3);
}

int main(void)
{
    check_start();
    avhdx_disk *d = make_chain();
    struct avhdx_progress_cb cancel = {stop, NULL, count_free};
    CHECK_FAILS(avhdx_merge(d, 1, 2, NULL, &cancel), ECANCELED, AVHDX_ERR_CANCELLED);
    CHECK(freed == 1);
    content(d);
    CHECK(avhdx_layer_count(d) == 3);
    uint64_t done = 0;
    struct avhdx_progress_cb progress = {go_on, &done, count_free};
    CHECK(avhdx_merge(d, 1, 2, NULL, &progress) == 0);
    CHECK(freed == 2 && done >= MIB);
    CHECK(avhdx_layer_count(d) == 2 && access(in_dir("a.avhdx"), F_OK) != 0);
    content(d);
    CHECK_FAILS(avhdx_merge(d, 1, 1, NULL, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_merge(d, 0, 7, NULL, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK(avhdx_close(d) == 0);

    /* Another child of the base stands against it. */
    avhdx_opts *o = avhdx_opts_new();
    CHECK(avhdx_opts_set_str(o, "parent", in_dir("base.vhdx")) == 0);
    CHECK(avhdx_create(in_dir("other.avhdx"), o) == 0);
    CHECK_FAILS(avhdx_merge_path(in_dir("b.avhdx"), NULL, NULL, NULL), EBUSY, AVHDX_ERR_HAS_CHILDREN);
    CHECK(strstr(avhdx_error_message(avhdx_last_error()), "other.avhdx") != NULL);
    CHECK(unlink(in_dir("other.avhdx")) == 0);
    avhdx_opts_free(o);

    o = avhdx_opts_new();
    CHECK(avhdx_opts_parse(o, "mode=consume") == 0);
    CHECK(avhdx_merge_path(in_dir("b.avhdx"), in_dir("base.vhdx"), o, NULL) == 0);
    avhdx_opts_free(o);
    CHECK(access(in_dir("b.avhdx"), F_OK) != 0);
    CHECK(avhdx_open(&d, in_dir("base.vhdx"), NULL) == 0);
    content(d);
    CHECK(avhdx_layer_count(d) == 1);
    CHECK(avhdx_close(d) == 0);
    return 0;
}
