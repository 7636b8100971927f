/* Merging changes files, never what the disk reads as; it can be refused, cancelled and finished later. */
#include "check.h"

#define DISK_SIZE (16 * MIB)

static unsigned char *model, *buf;

/* base <- a <- b, open, with data in each. */
static avhdx_disk *chain(const char *dir)
{
    avhdx_disk *disk;
    char base[64], a[64], b[64];
    uint64_t at;

    NEED(mkdir(tmp(dir), 0700) == 0);
    snprintf(base, sizeof base, "%s/base.vhdx", dir);
    snprintf(a, sizeof a, "%s/a.avhdx", dir);
    snprintf(b, sizeof b, "%s/b.avhdx", dir);
    NEED(create(tmp(base), "size=16M,block-size=1M") == 0);
    NEED((disk = open_with(tmp(base), "")) != NULL);
    memset(model, 0, DISK_SIZE);
    fill(model, 6 * MIB, 1);
    NEED(avhdx_pwrite(disk, model, 6 * MIB, 0, 0) == 0);
    NEED(avhdx_checkpoint(disk, tmp(a), NULL) == 0);
    for (at = 0; at < DISK_SIZE; at += 700 * KIB) {
        fill(model + at, 5000, at + 2);
        NEED(avhdx_pwrite(disk, model + at, 5000, at, 0) == 0);
    }
    NEED(avhdx_checkpoint(disk, tmp(b), NULL) == 0);
    fill(model + 2 * MIB + 100, 2 * MIB, 3);
    NEED(avhdx_pwrite(disk, model + 2 * MIB + 100, 2 * MIB, 2 * MIB + 100, 0) == 0);
    memset(model + 9 * MIB, 0, MIB);
    NEED(avhdx_zero(disk, 9 * MIB, MIB, AVHDX_MAY_UNMAP) == 0);
    return disk;
}

static void reads_the_same(avhdx_disk *disk)
{
    CHECK_OK(avhdx_pread(disk, buf, DISK_SIZE, 0));
    CHECK(memcmp(buf, model, DISK_SIZE) == 0);
}

static void whole_chain_into_the_base(void)
{
    avhdx_disk *disk = chain("all");

    CHECK_OK(merge_with(disk, 0, 2, "mode=copy,verify,threads=3"));
    CHECK_INT(avhdx_layer_count(disk), 1);
    CHECK(!exists(tmp("all/a.avhdx")) && !exists(tmp("all/b.avhdx")));
    reads_the_same(disk);
    model[5] = 9;
    CHECK_OK(avhdx_pwrite(disk, model + 5, 1, 5, AVHDX_FUA));
    CHECK_OK(avhdx_close(disk));
    CHECK_OK(errors_in(tmp("all/base.vhdx")));
    NEED((disk = open_with(tmp("all/base.vhdx"), "read-only")) != NULL);
    reads_the_same(disk);
    CHECK_OK(avhdx_close(disk));
}

static void middle_layer_repoints_the_leaf(void)
{
    avhdx_disk *disk = chain("middle");

    CHECK_OK(merge_with(disk, 1, 2, "mode=consume"));
    CHECK_INT(avhdx_layer_count(disk), 2);
    CHECK(!exists(tmp("middle/a.avhdx")));
    reads_the_same(disk);
    CHECK_OK(avhdx_close(disk));
    NEED((disk = open_with(tmp("middle/b.avhdx"), "")) != NULL);
    CHECK_INT(avhdx_layer_count(disk), 2);
    reads_the_same(disk);
    CHECK_OK(avhdx_close(disk));
    CHECK_OK(errors_in(tmp("middle/base.vhdx")));
    CHECK_OK(errors_in(tmp("middle/b.avhdx")));
}

static void files_are_kept_on_request(void)
{
    avhdx_disk *disk = chain("keep");

    CHECK_OK(merge_with(disk, 0, 1, "unlink=off"));
    CHECK_INT(avhdx_layer_count(disk), 2);
    CHECK(exists(tmp("keep/b.avhdx")));
    reads_the_same(disk);
    CHECK_OK(avhdx_close(disk));
}

static void unusable_ranges(void)
{
    avhdx_disk *disk = chain("ranges");

    CHECK_FAILS(merge_with(disk, 1, 1, ""), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(merge_with(disk, 2, 1, ""), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(merge_with(disk, 0, 3, ""), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(merge_with(disk, 0, UINT32_MAX, ""), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_INT(avhdx_layer_count(disk), 3);
    reads_the_same(disk);
    CHECK_OK(avhdx_close(disk));
}

static void siblings_are_not_orphaned(void)
{
    avhdx_disk *disk = chain("siblings");
    char line[300];

    snprintf(line, sizeof line, "type=differencing,parent=%s", tmp("siblings/base.vhdx"));
    NEED(create(tmp("siblings/other.avhdx"), line) == 0);
    CHECK_FAILS(merge_with(disk, 0, 2, ""), EBUSY, AVHDX_ERR_HAS_CHILDREN);
    CHECK_HAS(avhdx_error_message(NULL), "other.avhdx");
    CHECK_HAS(avhdx_error_hint(NULL), "siblings=orphan");
    CHECK_INT(avhdx_layer_count(disk), 3);
    reads_the_same(disk);
    CHECK_OK(merge_with(disk, 0, 2, "siblings=orphan"));
    reads_the_same(disk);
    CHECK_OK(avhdx_close(disk));
}

struct watch {
    unsigned calls, freed;
    uint64_t done, total, cancel_at;
    int shrank;
};

static int progress(void *user, uint64_t done, uint64_t total)
{
    struct watch *w = user;

    w->calls++;
    w->shrank |= done < w->done || total < done;
    w->done = done;
    w->total = total;
    return done >= w->cancel_at;
}

static void freed(void *user)
{
    ((struct watch *)user)->freed++;
}

static void cancelled_and_finished(void)
{
    avhdx_disk *disk = chain("cancel");
    struct watch w = { 0, 0, 0, 0, 1, 0 };
    avhdx_progress_cb cb = { progress, NULL, freed };

    cb.user = &w;
    CHECK_FAILS(avhdx_merge(disk, 0, 2, NULL, &cb), ECANCELED, AVHDX_ERR_CANCELLED);
    CHECK(w.calls > 0);
    CHECK_INT(w.freed, 1);
    reads_the_same(disk);
    CHECK_OK(avhdx_close(disk));
    NEED((disk = open_with(tmp("cancel/b.avhdx"), "")) != NULL);
    reads_the_same(disk);
    memset(&w, 0, sizeof w);
    w.cancel_at = UINT64_MAX;
    CHECK_OK(avhdx_merge(disk, 0, 2, NULL, &cb));
    CHECK_INT(w.freed, 1);
    CHECK(!w.shrank && w.done > 0 && w.done == w.total);
    reads_the_same(disk);
    CHECK_OK(avhdx_close(disk));
    CHECK_OK(errors_in(tmp("cancel/base.vhdx")));
}

/* What was cancelled says what it was, in its files, and is finished without being told again. */
static void resumed(void)
{
    avhdx_disk *disk = chain("resume");
    struct watch w = { 0, 0, 0, 0, 1, 0 };
    avhdx_progress_cb cb = { progress, NULL, freed };
    struct avhdx_pending pending = AVHDX_PENDING_INIT;
    avhdx_opts *o = opts("parent-root=/nowhere");

    cb.user = &w;
    CHECK_OK(avhdx_close(disk));
    CHECK_OK(avhdx_pending(tmp("resume/b.avhdx"), NULL, &pending));
    CHECK_INT(pending.stage, AVHDX_PENDING_NONE);
    CHECK_INT(avhdx_resume(tmp("resume/b.avhdx"), NULL, NULL), 0);
    NEED((disk = open_with(tmp("resume/b.avhdx"), "")) != NULL);
    CHECK_FAILS(avhdx_merge(disk, 0, 2, NULL, &cb), ECANCELED, AVHDX_ERR_CANCELLED);
    CHECK_OK(avhdx_close(disk));
    CHECK_OK(avhdx_pending(tmp("resume/b.avhdx"), NULL, &pending));
    CHECK_INT(pending.stage, AVHDX_PENDING_MERGE);
    CHECK(pending.top == 0 && pending.base == 2);
    CHECK_FAILS(avhdx_resume(tmp("resume/b.avhdx"), o, NULL), ENOENT, AVHDX_ERR_PARENT_NOT_FOUND);
    CHECK_FAILS(avhdx_resume(tmp("resume/b.avhdx"), NULL, &cb), ECANCELED, AVHDX_ERR_CANCELLED);
    CHECK_INT(avhdx_resume(tmp("resume/b.avhdx"), NULL, NULL), 1);
    CHECK(!exists(tmp("resume/a.avhdx")) && !exists(tmp("resume/b.avhdx")));
    NEED((disk = open_with(tmp("resume/base.vhdx"), "")) != NULL);
    reads_the_same(disk);
    CHECK_OK(avhdx_close(disk));
    CHECK_INT(avhdx_resume(tmp("resume/base.vhdx"), NULL, NULL), 0);
    CHECK_FAILS(avhdx_pending(tmp("resume/none"), NULL, &pending), ENOENT, AVHDX_ERR_IO);
    avhdx_opts_free(o);
}

/* What a plan says comes true, and planning changes nothing. */
static void planned(void)
{
    avhdx_disk *disk = chain("plan");
    struct avhdx_plan plan = AVHDX_PLAN_INIT;
    avhdx_opts *o = opts("base=2,mode=copy,rate=1"), *wrong = opts("top=1,base=1");
    char *json;
    struct stat before, after;

    CHECK_FAILS(avhdx_plan(disk, "melt", NULL, &plan), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_plan(disk, "merge", wrong, &plan), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_OK(avhdx_plan(disk, "merge", o, &plan));
    reads_the_same(disk);
    CHECK(exists(tmp("plan/a.avhdx")) && exists(tmp("plan/b.avhdx")));
    NEED(stat(tmp("plan/base.vhdx"), &before) == 0);
    CHECK((plan.flags & AVHDX_PLAN_FITS) && plan.free != AVHDX_NO_OFFSET && plan.bytes > 2 * MIB);
    CHECK(plan.created == 0 && plan.changed == 1 && plan.removed == 2);
    NEED((json = avhdx_plan_json(disk, "merge", o)) != NULL);
    CHECK(strstr(json, "base.vhdx") && strstr(json, "\"after\":null"));
    avhdx_free(json);
    avhdx_opts_free(o);
    o = opts("out=/nonexistent/x.raw");
    CHECK_FAILS(avhdx_plan(disk, "convert", o, &plan), ENOENT, AVHDX_ERR_IO);
    CHECK_OK(avhdx_merge(disk, 0, 2, NULL, NULL));
    CHECK_OK(avhdx_close(disk));
    NEED(stat(tmp("plan/base.vhdx"), &after) == 0);
    CHECK(after.st_size - before.st_size == (off_t)plan.growth);
    avhdx_opts_free(o);
    avhdx_opts_free(wrong);
}

static void by_path(void)
{
    avhdx_opts *o = opts("mode=auto,lock=on");
    avhdx_disk *disk = chain("path");

    CHECK_OK(avhdx_close(disk));
    CHECK_INT(avhdx_merge_path(tmp("path/b.avhdx"), tmp("path/b.avhdx"), o, NULL), -EINVAL);
    CHECK_OK(avhdx_merge_path(tmp("path/b.avhdx"), NULL, o, NULL));
    CHECK(!exists(tmp("path/b.avhdx")) && exists(tmp("path/a.avhdx")));
    CHECK_OK(avhdx_merge_path(tmp("path/a.avhdx"), tmp("path/base.vhdx"), o, NULL));
    CHECK(!exists(tmp("path/a.avhdx")));
    NEED((disk = open_with(tmp("path/base.vhdx"), "read-only")) != NULL);
    reads_the_same(disk);
    CHECK_OK(avhdx_close(disk));
    CHECK_INT(avhdx_merge_path(tmp("path/base.vhdx"), NULL, o, NULL), -EINVAL);
    CHECK_INT(avhdx_merge_path(tmp("path/none"), NULL, o, NULL), -ENOENT);
    avhdx_opts_free(o);
}

int main(void)
{
    model = malloc(DISK_SIZE);
    buf = malloc(DISK_SIZE);
    NEED(model && buf);
    RUN(whole_chain_into_the_base);
    RUN(middle_layer_repoints_the_leaf);
    RUN(files_are_kept_on_request);
    RUN(unusable_ranges);
    RUN(siblings_are_not_orphaned);
    RUN(cancelled_and_finished);
    RUN(resumed);
    RUN(planned);
    RUN(by_path);
    free(model);
    free(buf);
    return check_end();
}
