/* A job does what a step gives it and then stands still; the disk is used meanwhile; it can be cancelled, and survives
 * being freed or having its disk closed at any moment. */
#include "check.h"

#define DISK_SIZE (64 * MIB)

static unsigned char *model, *buf;

/* base <- a, with 48 MiB in a. */
static avhdx_disk *chain(const char *dir)
{
    avhdx_disk *disk;
    char base[64], a[64];

    NEED(mkdir(tmp(dir), 0700) == 0);
    snprintf(base, sizeof base, "%s/base.vhdx", dir);
    snprintf(a, sizeof a, "%s/a.avhdx", dir);
    NEED(create(tmp(base), "size=64M,block-size=1M") == 0);
    NEED((disk = open_with(tmp(base), "")) != NULL);
    NEED(avhdx_checkpoint(disk, tmp(a), NULL) == 0);
    memset(model, 0, DISK_SIZE);
    fill(model, 48 * MIB, 1);
    NEED(avhdx_pwrite(disk, model, 48 * MIB, 0, 0) == 0);
    return disk;
}

static avhdx_job *merge_job(avhdx_disk *disk)
{
    avhdx_opts *o = opts("top=0,base=1,mode=copy");
    avhdx_job *job;

    NEED(avhdx_job_new(&job, disk, "merge", o) == 0);
    avhdx_opts_free(o);
    return job;
}

static void reads_the_same(avhdx_disk *disk)
{
    CHECK_OK(avhdx_pread(disk, buf, DISK_SIZE, 0));
    CHECK(memcmp(buf, model, DISK_SIZE) == 0);
}

static void a_merge_in_steps(void)
{
    avhdx_disk *disk = chain("steps");
    avhdx_job *job = merge_job(disk), *other;
    struct avhdx_progress progress = AVHDX_PROGRESS_INIT;
    uint64_t before = 0;
    int steps = 0, r;

    CHECK_OK(avhdx_job_progress(job, &progress));
    CHECK_INT(progress.done, 0);
    while ((r = avhdx_job_step(job, 8 * MIB, &progress)) == 1) {
        CHECK(progress.done > before && progress.done <= before + 12 * MIB && progress.done <= progress.total);
        before = progress.done;
        steps++;
        /* Between steps the disk is read and written, below and above where the merge is. */
        model[steps * 1000] ^= 1;
        CHECK_OK(avhdx_pwrite(disk, model + steps * 1000, 1, (uint64_t)steps * 1000, 0));
        fill(model + 60 * MIB, 4096, (uint64_t)steps);
        CHECK_OK(avhdx_pwrite(disk, model + 60 * MIB, 4096, 60 * MIB, 0));
        reads_the_same(disk);
        CHECK_FAILS(merge_with(disk, 0, 1, ""), EINPROGRESS, AVHDX_ERR_PENDING_OPERATION);
        CHECK_FAILS(avhdx_checkpoint(disk, tmp("x"), NULL), EINPROGRESS, AVHDX_ERR_PENDING_OPERATION);
        CHECK_FAILS(avhdx_job_new(&other, disk, "merge", NULL), EINPROGRESS, AVHDX_ERR_PENDING_OPERATION);
        CHECK(other == NULL);
    }
    CHECK_OK(r);
    CHECK(steps >= 4);
    CHECK_OK(avhdx_job_step(job, 1, NULL));
    CHECK_INT(avhdx_layer_count(disk), 1);
    reads_the_same(disk);
    avhdx_job_free(job);
    CHECK_OK(avhdx_checkpoint(disk, tmp("steps/next.avhdx"), NULL));
    CHECK_OK(avhdx_close(disk));
    CHECK_OK(errors_in(tmp("steps/base.vhdx")));
}

static void cancelled_then_done_by_another(void)
{
    avhdx_disk *disk = chain("cancel");
    avhdx_job *job = merge_job(disk);

    CHECK_INT(avhdx_job_step(job, 20 * MIB, NULL), 1);
    CHECK_OK(avhdx_job_cancel(job));
    CHECK_FAILS(avhdx_job_step(job, 1, NULL), ECANCELED, AVHDX_ERR_CANCELLED);
    CHECK_FAILS(avhdx_job_step(job, 1, NULL), ECANCELED, AVHDX_ERR_CANCELLED);
    reads_the_same(disk);
    avhdx_job_free(job);
    job = merge_job(disk);
    CHECK_OK(avhdx_job_step(job, UINT64_MAX, NULL));
    avhdx_job_free(job);
    CHECK_INT(avhdx_layer_count(disk), 1);
    reads_the_same(disk);
    CHECK_OK(avhdx_close(disk));
}

/* when: before the first step, or after one; how: freed or disk closed first. */
static void ended(const char *dir, int begun, int close_first)
{
    avhdx_disk *disk = chain(dir);
    avhdx_job *job = merge_job(disk);
    char name[64];

    if (begun)
        CHECK_INT(avhdx_job_step(job, 4 * MIB, NULL), 1);
    if (close_first) {
        CHECK_OK(avhdx_close(disk));
        CHECK_FAILS(avhdx_job_step(job, 1, NULL), ECANCELED, AVHDX_ERR_CANCELLED);
        avhdx_job_free(job);
    } else {
        avhdx_job_free(job);
        reads_the_same(disk);
        CHECK_OK(avhdx_close(disk));
    }
    snprintf(name, sizeof name, "%s/a.avhdx", dir);
    NEED((disk = open_with(tmp(name), "")) != NULL);
    reads_the_same(disk);
    CHECK_OK(merge_with(disk, 0, 1, ""));
    reads_the_same(disk);
    CHECK_OK(avhdx_close(disk));
}

static void freed_before_it_began(void)
{
    ended("freed-0", 0, 0);
}

static void freed_in_the_middle(void)
{
    ended("freed-1", 1, 0);
}

static void closed_before_it_began(void)
{
    ended("closed-0", 0, 1);
}

static void closed_in_the_middle(void)
{
    ended("closed-1", 1, 1);
}

static void refusals(void)
{
    avhdx_disk *disk = chain("refused");
    avhdx_opts *o = opts("base=7");
    avhdx_job *job;

    CHECK_FAILS(avhdx_job_new(&job, disk, "dance", NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_HAS(avhdx_error_hint(NULL), "merge");
    CHECK_OK(avhdx_job_new(&job, disk, "merge", o));
    CHECK_FAILS(avhdx_job_step(job, 1, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_OK(merge_with(disk, 0, 1, ""));
    avhdx_job_free(job);
    avhdx_opts_free(o);
    CHECK_OK(avhdx_close(disk));
}

int main(void)
{
    model = malloc(DISK_SIZE);
    buf = malloc(DISK_SIZE);
    NEED(model && buf);
    RUN(a_merge_in_steps);
    RUN(cancelled_then_done_by_another);
    RUN(freed_before_it_began);
    RUN(freed_in_the_middle);
    RUN(closed_before_it_began);
    RUN(closed_in_the_middle);
    RUN(refusals);
    free(model);
    free(buf);
    return check_end();
}
