/* Each operation that has a job: it does what a step gives it and then stands still; the disk is used meanwhile; it can be cancelled, and survives
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

/* base <- a <- b: 24, 16 and 16 MiB, each over a part of the one before; the last 8 are zeros. */
static avhdx_disk *family(const char *dir)
{
    static const struct { const char *next; uint64_t at, len; } layers[] = {
        { "a.avhdx", 0, 24 }, { "b.avhdx", 16, 16 }, { NULL, 28, 8 }, { NULL, 48, 8 },
    };
    avhdx_disk *disk;
    char name[64];
    size_t i;

    NEED(mkdir(tmp(dir), 0700) == 0);
    snprintf(name, sizeof name, "%s/base.vhdx", dir);
    NEED(create(tmp(name), "size=64M,block-size=1M") == 0);
    NEED((disk = open_with(tmp(name), "")) != NULL);
    memset(model, 0, DISK_SIZE);
    for (i = 0; i < 4; i++) {
        avhdx_opts *o = opts("block-size=1M");
        if (i < 3)
            fill(model + layers[i].at * MIB, layers[i].len * MIB, i + 1);
        NEED(avhdx_pwrite(disk, model + layers[i].at * MIB, layers[i].len * MIB, layers[i].at * MIB, 0) == 0);
        snprintf(name, sizeof name, "%s/%s", dir, layers[i].next ? layers[i].next : "");
        NEED(!layers[i].next || avhdx_checkpoint(disk, tmp(name), o) == 0);
        avhdx_opts_free(o);
    }
    return disk;
}

/* Writes and reads where the operation was and where it will be, but not in the first MiB. */
static void in_use(avhdx_disk *disk, int step)
{
    uint64_t at = (uint64_t)(1 + step * 7 % 60) * MIB;

    fill(model + at + 12345, 5000, (uint64_t)step);
    CHECK_OK(avhdx_pwrite(disk, model + at + 12345, 5000, at + 12345, 0));
    CHECK_OK(avhdx_pread(disk, buf, 4 * MIB, at));
    CHECK(memcmp(buf, model + at, 4 * MIB) == 0);
}

/* keys may have one %s for the directory. Every operation: in steps, cancelled in the middle, again, to its end. */
static void stepped(const char *operation, const char *keys, int layers, const char *reports)
{
    char *report;
    avhdx_disk *disk = family(operation);
    struct avhdx_progress progress = AVHDX_PROGRESS_INIT;
    char line[512], name[64];
    avhdx_job *job, *other;
    avhdx_opts *o;
    int r, step = 0, steps;

    snprintf(line, sizeof line, keys, tmp(operation));
    o = opts(line);
    CHECK_OK(avhdx_job_new(&job, disk, operation, o));
    CHECK_FAILS(avhdx_job_new(&other, disk, operation, o), EINPROGRESS, AVHDX_ERR_PENDING_OPERATION);
    while (step < 3) {
        CHECK_INT(avhdx_job_step(job, MIB, &progress), 1);
        CHECK(progress.done > 0 && progress.done <= progress.total);
        in_use(disk, step++);
    }
    CHECK(avhdx_job_report_json(job) == NULL);
    CHECK_OK(avhdx_job_cancel(job));
    CHECK_FAILS(avhdx_job_step(job, MIB, NULL), ECANCELED, AVHDX_ERR_CANCELLED);
    CHECK_HAS(avhdx_error_hint(NULL), "run");
    avhdx_job_free(job);
    CHECK_INT(avhdx_layer_count(disk), 3);
    reads_the_same(disk);

    CHECK_OK(avhdx_job_new(&job, disk, operation, o));
    for (steps = 0; (r = avhdx_job_step(job, MIB, &progress)) == 1; steps++)
        in_use(disk, step++);
    CHECK_OK(r);
    CHECK(steps >= 3);
    NEED((report = avhdx_job_report_json(job)) != NULL);
    CHECK_HAS(report, reports);
    avhdx_free(report);
    /* What was written meanwhile need not be dealt with. */
    CHECK(progress.done > 0 && progress.done <= progress.total);
    avhdx_job_free(job);
    avhdx_opts_free(o);
    CHECK_INT(avhdx_layer_count(disk), layers);
    reads_the_same(disk);
    CHECK_OK(avhdx_close(disk));

    snprintf(name, sizeof name, "%s/b.avhdx", operation);
    CHECK_OK(errors_in(tmp(name)));
    NEED((disk = open_with(tmp(name), "")) != NULL);
    CHECK_INT(avhdx_layer_count(disk), layers);
    reads_the_same(disk);
    CHECK_OK(avhdx_close(disk));
}

static void a_merge_below_the_leaf(void)
{
    stepped("merge", "top=1,base=2,mode=copy", 2, "a.avhdx\"]");
}

static void a_deletion(void)
{
    stepped("delete", "top=1,into=children", 2, "\"into-children\":true");
}

static void a_rebase(void)
{
    stepped("rebase", "onto=%s/base.vhdx", 2, "{\"bytes\":");
}

static void a_detach(void)
{
    stepped("detach", "", 1, "{\"bytes\":");
}

static void a_compaction(void)
{
    stepped("compact", "mode=full", 3, "\"size-before\":");
}

static void a_conversion(void)
{
    avhdx_disk *disk;

    stepped("convert", "out=%s/new.vhdx,type=fixed", 3, "\"format\":\"vhdx\"");
    /* What was written meanwhile may be in it or not. */
    NEED((disk = open_with(tmp("convert/new.vhdx"), "")) != NULL);
    CHECK_OK(avhdx_pread(disk, buf, DISK_SIZE, 0));
    CHECK(memcmp(buf, model, MIB) == 0 && all(buf + 56 * MIB, 1000, 0));
    CHECK_OK(avhdx_close(disk));
}

static void a_digest(void)
{
    avhdx_disk *disk;
    avhdx_job *job;
    avhdx_opts *o = opts("top=1,algorithm=sha512");
    unsigned char sum[64];
    char hex[129], *report;
    size_t len = sizeof sum, i;

    stepped("digest", "", 3, "\"algorithm\":\"sha256\"");
    NEED((disk = open_with(tmp("digest/b.avhdx"), "")) != NULL);
    CHECK_OK(avhdx_job_new(&job, disk, "digest", o));
    while (avhdx_job_step(job, MIB, NULL) == 1)
        ;
    NEED((report = avhdx_job_report_json(job)) != NULL);
    avhdx_job_free(job);
    CHECK_OK(avhdx_digest(disk, 1, "sha512", sum, &len, NULL, NULL));
    for (i = 0; i < len; i++)
        snprintf(hex + 2 * i, 3, "%02x", sum[i]);
    CHECK_HAS(report, hex);
    avhdx_free(report);
    avhdx_opts_free(o);
    CHECK_OK(avhdx_close(disk));
}

static void keys_are_those_of_the_operation(void)
{
    static const struct { const char *operation, *keys, *says; } cases[] = {
        { "rebase", "", "onto" }, { "convert", "", "out" },        { "detach", "top=1", "top" },
        { "compact", "out=x", "out" }, { "delete", "base=2", "base" }, { "compact", "verify", "verify" },
    };
    avhdx_disk *disk = family("keys");
    avhdx_job *job;
    size_t i;

    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        avhdx_opts *o = opts(cases[i].keys);
        CHECK_FAILS(avhdx_job_new(&job, disk, cases[i].operation, o), EINVAL, AVHDX_ERR_ARGUMENT);
        CHECK_HAS(avhdx_error_message(NULL), cases[i].says);
        avhdx_opts_free(o);
    }
    CHECK_OK(avhdx_close(disk));
}

static void refusals(void)
{
    avhdx_disk *disk = chain("refused");
    avhdx_opts *o = opts("base=7");
    avhdx_job *job;

    CHECK_FAILS(avhdx_job_new(&job, disk, "dance", NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_HAS(avhdx_error_hint(NULL), "merge, delete, rebase, detach, convert, compact, digest");
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
    RUN(a_merge_below_the_leaf);
    RUN(a_deletion);
    RUN(a_rebase);
    RUN(a_detach);
    RUN(a_compaction);
    RUN(a_conversion);
    RUN(a_digest);
    RUN(keys_are_those_of_the_operation);
    RUN(refusals);
    free(model);
    free(buf);
    return check_end();
}
