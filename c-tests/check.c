/* Checking finds what is broken, reports it whole, and writes nothing. */
#include "check.h"

struct seen {
    unsigned issues, errors, freed;
    char first[512];
};

static void issue(void *user, const struct avhdx_issue *found)
{
    struct seen *seen = user;

    CHECK_INT(found->struct_size, sizeof *found);
    CHECK(found->severity >= AVHDX_SEVERITY_NOTE && found->severity <= AVHDX_SEVERITY_ERROR);
    CHECK(found->rule[0] && found->structure[0] && found->found[0] && found->wanted[0]);
    CHECK_HAS(found->message, found->wanted);
    if (found->severity == AVHDX_SEVERITY_ERROR && seen->errors++ == 0)
        snprintf(seen->first, sizeof seen->first, "%s", found->message);
    seen->issues++;
}

static void freed(void *user)
{
    ((struct seen *)user)->freed++;
}

static struct seen seen;
static struct avhdx_issue_cb callback = { issue, &seen, freed };

static void sound(void)
{
    struct avhdx_check report = AVHDX_CHECK_INIT;
    unsigned char byte = 1;
    avhdx_disk *disk;

    NEED(create(tmp("d.vhdx"), "size=16M,block-size=1M") == 0);
    NEED((disk = open_with(tmp("d.vhdx"), "")) != NULL);
    NEED(avhdx_pwrite(disk, &byte, 1, 3 * MIB, 0) == 0);
    NEED(avhdx_close(disk) == 0);
    memset(&seen, 0, sizeof seen);
    CHECK_OK(avhdx_check(tmp("d.vhdx"), NULL, &report, &callback));
    CHECK_INT(report.struct_size, sizeof report);
    CHECK_INT(report.errors, 0);
    CHECK_INT(report.allocated_blocks, 1);
    CHECK_INT(report.total_blocks, 16);
    CHECK_INT(seen.errors, 0);
    CHECK_INT(seen.issues, report.errors + report.warnings + report.notes);
    CHECK_INT(seen.freed, 1);
}

static void broken(void)
{
    struct avhdx_check report = AVHDX_CHECK_INIT;
    struct stat before, after;
    avhdx_opts *o = opts("windows=on,lock=off");

    /* The file ends before its blocks do. */
    NEED(truncate(tmp("d.vhdx"), (off_t)(3 * MIB + 1000)) == 0);
    NEED(stat(tmp("d.vhdx"), &before) == 0);
    memset(&seen, 0, sizeof seen);
    CHECK_OK(avhdx_check(tmp("d.vhdx"), o, &report, &callback));
    CHECK(report.errors > 0);
    CHECK_INT(seen.errors, report.errors);
    CHECK_HAS(seen.first, "wanted");
    CHECK_INT(seen.freed, 1);
    NEED(stat(tmp("d.vhdx"), &after) == 0);
    CHECK(before.st_mtim.tv_nsec == after.st_mtim.tv_nsec && before.st_size == after.st_size);
    avhdx_opts_free(o);
}

static void not_even_a_file(void)
{
    struct avhdx_check report = AVHDX_CHECK_INIT;

    memset(&seen, 0, sizeof seen);
    CHECK_FAILS(avhdx_check(tmp("none"), NULL, &report, &callback), ENOENT, AVHDX_ERR_IO);
    CHECK_INT(seen.freed, 1);
    CHECK_INT(report.errors, 0);
    CHECK_FAILS(avhdx_check("/dev/null", NULL, &report, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
}

int main(void)
{
    RUN(sound);
    RUN(broken);
    RUN(not_even_a_file);
    return check_end();
}
