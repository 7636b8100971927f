/* What a chain is made of changes; what the disks that are kept read as does not. */
#include "check.h"

static int cancelled(void *user, uint64_t done, uint64_t total)
{
    (void)user, (void)done, (void)total;
    return 1;
}

static unsigned char buf[4096];

/* base <- a <- b, open; each holds its own number at 0, and base 9 at 1M. */
static avhdx_disk *chain(const char *dir)
{
    avhdx_disk *disk;
    char name[64];

    NEED(mkdir(tmp(dir), 0700) == 0);
    snprintf(name, sizeof name, "%s/base.vhdx", dir);
    NEED(create(tmp(name), "size=16M,block-size=1M") == 0);
    NEED((disk = open_with(tmp(name), "")) != NULL);
    memset(buf, 9, sizeof buf);
    NEED(avhdx_pwrite(disk, buf, sizeof buf, MIB, 0) == 0);
    memset(buf, 1, sizeof buf);
    NEED(avhdx_pwrite(disk, buf, sizeof buf, 0, 0) == 0);
    snprintf(name, sizeof name, "%s/a.avhdx", dir);
    NEED(avhdx_checkpoint(disk, tmp(name), NULL) == 0);
    memset(buf, 2, sizeof buf);
    NEED(avhdx_pwrite(disk, buf, sizeof buf, 0, 0) == 0);
    snprintf(name, sizeof name, "%s/b.avhdx", dir);
    NEED(avhdx_checkpoint(disk, tmp(name), NULL) == 0);
    memset(buf, 3, sizeof buf);
    NEED(avhdx_pwrite(disk, buf, sizeof buf, 0, 0) == 0);
    return disk;
}

static int reads(avhdx_disk *disk, uint64_t at, unsigned char byte)
{
    return avhdx_pread(disk, buf, sizeof buf, at) == 0 && all(buf, sizeof buf, byte);
}

static void revert_goes_back_and_keeps_the_old_leaf(void)
{
    avhdx_disk *disk = chain("revert");
    avhdx_opts *o = opts("unlink");

    CHECK_FAILS(avhdx_revert(disk, 0, tmp("revert/c.avhdx"), NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_revert(disk, 3, tmp("revert/c.avhdx"), NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_INT(avhdx_revert(disk, 1, tmp("revert/b.avhdx"), NULL), -EEXIST);
    CHECK_OK(avhdx_revert(disk, 1, tmp("revert/c.avhdx"), NULL));
    CHECK_INT(avhdx_layer_count(disk), 3);
    CHECK(reads(disk, 0, 2));
    CHECK(exists(tmp("revert/b.avhdx")));
    /* c goes; a stays: b depends on it. */
    CHECK_OK(avhdx_revert(disk, 2, tmp("revert/d.avhdx"), o));
    CHECK(!exists(tmp("revert/c.avhdx")) && exists(tmp("revert/a.avhdx")));
    CHECK(reads(disk, 0, 1));
    CHECK_OK(avhdx_close(disk));
    NEED((disk = open_with(tmp("revert/b.avhdx"), "read-only")) != NULL);
    CHECK(reads(disk, 0, 3));
    CHECK_OK(avhdx_close(disk));
    avhdx_opts_free(o);
}

static void delete_takes_the_file_and_keeps_the_content(void)
{
    avhdx_disk *disk = chain("delete");
    avhdx_opts *o = opts("into=children");

    CHECK_FAILS(avhdx_delete_layer(disk, 0, NULL, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_delete_layer(disk, 2, NULL, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_delete_layer(disk, 7, NULL, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_OK(avhdx_delete_layer(disk, 1, o, NULL));
    CHECK(!exists(tmp("delete/a.avhdx")));
    CHECK_INT(avhdx_layer_count(disk), 2);
    CHECK(reads(disk, 0, 3));
    CHECK_OK(avhdx_layer_pread(disk, 1, buf, sizeof buf, 0));
    CHECK(all(buf, sizeof buf, 1));
    CHECK_OK(avhdx_close(disk));
    CHECK_OK(errors_in(tmp("delete/b.avhdx")));
    avhdx_opts_free(o);
}

static void branches_go_whole_and_never_the_open_one(void)
{
    avhdx_disk *disk = chain("branch");

    CHECK_OK(avhdx_revert(disk, 2, tmp("branch/c.avhdx"), NULL));
    CHECK_FAILS(avhdx_delete_branch(disk, tmp("branch/base.vhdx")), EBUSY, AVHDX_ERR_HAS_CHILDREN);
    CHECK_OK(avhdx_delete_branch(disk, tmp("branch/a.avhdx")));
    CHECK(!exists(tmp("branch/a.avhdx")) && !exists(tmp("branch/b.avhdx")));
    CHECK(reads(disk, 0, 1));
    CHECK_OK(avhdx_close(disk));
}

static void reparent_wants_the_right_file(void)
{
    avhdx_disk *disk = chain("parent");
    avhdx_opts *o = opts("ignore-id-mismatch");

    CHECK_OK(avhdx_close(disk));
    NEED(rename(tmp("parent/a.avhdx"), tmp("parent/moved.avhdx")) == 0);
    CHECK_OK(avhdx_reparent(tmp("parent/b.avhdx"), tmp("parent/moved.avhdx"), NULL));
    CHECK_FAILS(avhdx_reparent(tmp("parent/b.avhdx"), tmp("parent/base.vhdx"), NULL), ESTALE, AVHDX_ERR_PARENT_ID_MISMATCH);
    CHECK_HAS(avhdx_error_hint(NULL), "ignore-id-mismatch");
    CHECK_FAILS(avhdx_reparent(tmp("parent/moved.avhdx"), tmp("parent/b.avhdx"), o), ELOOP, AVHDX_ERR_CHAIN_LOOP);
    CHECK_FAILS(avhdx_reparent(tmp("parent/base.vhdx"), tmp("parent/b.avhdx"), o), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_OK(avhdx_reparent(tmp("parent/b.avhdx"), tmp("parent/base.vhdx"), o));
    NEED((disk = open_with(tmp("parent/b.avhdx"), "read-only")) != NULL);
    CHECK_INT(avhdx_layer_count(disk), 2);
    CHECK_OK(avhdx_close(disk));
    avhdx_opts_free(o);
}

static void rebase_and_detach_keep_the_content(void)
{
    avhdx_disk *disk = chain("rebase");
    avhdx_progress_cb stop = { cancelled, NULL, NULL };

    NEED(create(tmp("rebase/other.vhdx"), "size=8M") == 0);
    CHECK_FAILS(avhdx_rebase(disk, tmp("rebase/b.avhdx"), NULL, NULL), ELOOP, AVHDX_ERR_CHAIN_LOOP);
    CHECK_FAILS(avhdx_rebase(disk, tmp("rebase/other.vhdx"), NULL, &stop), ECANCELED, AVHDX_ERR_CANCELLED);
    CHECK_INT(avhdx_layer_count(disk), 3);
    CHECK_OK(avhdx_rebase(disk, tmp("rebase/other.vhdx"), NULL, NULL));
    CHECK_INT(avhdx_layer_count(disk), 2);
    CHECK(reads(disk, 0, 3) && reads(disk, MIB, 9));
    CHECK_FAILS(avhdx_detach(disk, NULL, &stop), ECANCELED, AVHDX_ERR_CANCELLED);
    CHECK_OK(avhdx_detach(disk, NULL, NULL));
    CHECK_INT(avhdx_layer_count(disk), 1);
    CHECK(reads(disk, 0, 3) && reads(disk, MIB, 9));
    CHECK_FAILS(avhdx_detach(disk, NULL, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_OK(avhdx_close(disk));
    CHECK_OK(errors_in(tmp("rebase/b.avhdx")));
}

int main(void)
{
    RUN(revert_goes_back_and_keeps_the_old_leaf);
    RUN(delete_takes_the_file_and_keeps_the_content);
    RUN(branches_go_whole_and_never_the_open_one);
    RUN(reparent_wants_the_right_file);
    RUN(rebase_and_detach_keep_the_content);
    return check_end();
}
