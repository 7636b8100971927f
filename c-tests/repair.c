/* A repair mends without changing what the disk reads as, tells what it did, and can be taken back bit for bit. */
#include "check.h"

#define DISK_SIZE (16 * MIB)

struct seen {
    unsigned issues, repaired, freed;
};

static void issue(void *user, const struct avhdx_issue *found)
{
    struct seen *seen = user;

    CHECK_INT(found->struct_size, sizeof *found);
    CHECK(found->repaired <= 1 && found->message[0]);
    seen->issues++;
    seen->repaired += found->repaired;
}

static void freed(void *user)
{
    ((struct seen *)user)->freed++;
}

static struct seen seen;
static struct avhdx_issue_cb callback = { issue, &seen, freed };
static unsigned char *model, *buf;

struct bytes {
    char *at;
    size_t len;
};

static struct bytes contents(const char *path)
{
    struct bytes all = { NULL, 0 };
    struct stat st;
    FILE *file = fopen(path, "rb");

    NEED(file && fstat(fileno(file), &st) == 0);
    all.len = (size_t)st.st_size;
    NEED((all.at = malloc(all.len + 1)) != NULL && fread(all.at, 1, all.len, file) == all.len);
    fclose(file);
    return all;
}

static void is_still(const char *path, const struct bytes *before)
{
    struct bytes now = contents(path);

    CHECK(now.len == before->len && memcmp(now.at, before->at, now.len) == 0);
    free(now.at);
}

static void patch(const char *path, long at, char byte)
{
    FILE *file = fopen(path, "r+b");

    NEED(file && fseek(file, at, SEEK_SET) == 0 && fputc(byte, file) != EOF && fclose(file) == 0);
}

static int repair(const char *path, const char *line, struct avhdx_repair *report)
{
    avhdx_opts *o = opts(line);
    int r;

    memset(&seen, 0, sizeof seen);
    r = avhdx_repair(path, o, report, &callback);
    CHECK_INT(seen.freed, 1);
    avhdx_opts_free(o);
    return r;
}

static void reads_the_same(const char *path)
{
    avhdx_disk *disk = open_with(path, "read-only");

    NEED(disk != NULL);
    CHECK_OK(avhdx_pread(disk, buf, DISK_SIZE, 0));
    CHECK(memcmp(buf, model, DISK_SIZE) == 0);
    CHECK_OK(avhdx_close(disk));
}

/* A disk as after a power cut, its second region table bad. */
static void damaged(const char *path)
{
    avhdx_disk *disk;

    NEED(create(path, "size=16M,block-size=1M") == 0);
    NEED((disk = open_with(path, "")) != NULL);
    fill(model, DISK_SIZE, 1);
    NEED(avhdx_pwrite(disk, model, DISK_SIZE, 0, AVHDX_FUA) == 0);
    avhdx_abort(disk);
    patch(path, 0x40010, 'x');
}

static void mended_and_taken_back(void)
{
    struct avhdx_repair promised = AVHDX_REPAIR_INIT, report = AVHDX_REPAIR_INIT;
    const char *path = tmp("d.vhdx"), *undo = tmp("d.vhdx.undo");
    struct bytes before;

    damaged(path);
    before = contents(path);
    CHECK_OK(repair(path, "dry-run", &promised));
    CHECK(promised.repaired > 0 && promised.changed == 0 && promised.errors == 0);
    CHECK_INT(seen.repaired, promised.repaired);
    CHECK(!exists(undo));
    is_still(path, &before);

    CHECK_OK(repair(path, "", &report));
    CHECK_INT(report.struct_size, sizeof report);
    CHECK_INT(report.changed, 1);
    CHECK_INT(report.repaired, promised.repaired);
    CHECK_INT(report.errors + report.warnings, 0);
    CHECK_INT(seen.repaired, report.repaired);
    CHECK(exists(undo));
    CHECK_OK(errors_in(path));
    reads_the_same(path);

    /* An undo file is never replaced; nothing is left to mend. */
    CHECK_FAILS(repair(path, "", &report), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_HAS(avhdx_error_hint(NULL), "undo");
    CHECK_OK(repair(path, "undo=/nonexistent/undo", &report));
    CHECK_INT(report.repaired, 0);
    CHECK_INT(report.changed, 0);

    CHECK_OK(avhdx_repair_undo(path, NULL, NULL));
    is_still(path, &before);
    CHECK_OK(avhdx_repair_undo(path, undo, NULL));
    is_still(path, &before);
    reads_the_same(path);
    free(before.at);
}

static void a_file_changed_since_is_not_undone(void)
{
    struct avhdx_repair report = AVHDX_REPAIR_INIT;
    const char *path = tmp("used.vhdx"), *undo = tmp("elsewhere");
    char line[300];
    struct bytes now;
    avhdx_disk *disk;

    damaged(path);
    snprintf(line, sizeof line, "undo=%s,cut-tail,clear-log=on", undo);
    CHECK_OK(repair(path, line, &report));
    CHECK(report.changed == 1 && exists(undo) && !exists(tmp("used.vhdx.undo")));
    NEED((disk = open_with(path, "")) != NULL);
    model[0] ^= 1;
    CHECK_OK(avhdx_pwrite(disk, model, 1, 0, 0));
    CHECK_OK(avhdx_close(disk));
    now = contents(path);
    CHECK_FAILS(avhdx_repair_undo(path, undo, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_repair_undo(path, path, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_repair_undo(path, tmp("none"), NULL), ENOENT, AVHDX_ERR_IO);
    patch(undo, 5000, 'x');
    CHECK_FAILS(avhdx_repair_undo(path, undo, NULL), EBADMSG, AVHDX_ERR_CHECKSUM);
    is_still(path, &now);
    reads_the_same(path);
    free(now.at);
}

static void in_use_or_not_a_disk(void)
{
    struct avhdx_repair report = AVHDX_REPAIR_INIT;
    avhdx_disk *disk = open_with(tmp("used.vhdx"), "");

    NEED(disk != NULL);
    CHECK_FAILS(repair(tmp("used.vhdx"), "undo=/nonexistent/undo", &report), EAGAIN, AVHDX_ERR_LOCKED);
    CHECK_FAILS(avhdx_repair_undo(tmp("used.vhdx"), tmp("d.vhdx.undo"), NULL), EAGAIN, AVHDX_ERR_LOCKED);
    CHECK_OK(avhdx_close(disk));
    CHECK_FAILS(repair(tmp("none"), "", &report), ENOENT, AVHDX_ERR_IO);
    CHECK_FAILS(repair(tmp("d.vhdx.undo"), "", &report), EMEDIUMTYPE, AVHDX_ERR_NOT_VHDX);
    CHECK_FAILS(repair(tmp("d.vhdx"), "verify", &report), EINVAL, AVHDX_ERR_ARGUMENT);
}

int main(void)
{
    model = malloc(DISK_SIZE);
    buf = malloc(DISK_SIZE);
    NEED(model && buf);
    RUN(mended_and_taken_back);
    RUN(a_file_changed_since_is_not_undone);
    RUN(in_use_or_not_a_disk);
    free(model);
    free(buf);
    return check_end();
}
