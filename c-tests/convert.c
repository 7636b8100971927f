/* A disk becomes another file, of any format, with the same content; sources stay as they are. */
#include "check.h"

#define DISK_SIZE (8 * MIB)

static unsigned char *model, *buf;

static int convert_with(avhdx_disk *disk, const char *dst, const char *line)
{
    avhdx_opts *o = opts(line);
    int r = avhdx_convert(disk, dst, o, NULL);

    avhdx_opts_free(o);
    return r;
}

static int migrate_with(const char *src, const char *dst, const char *line)
{
    avhdx_opts *o = opts(line);
    int r = avhdx_migrate(src, dst, o, NULL);

    avhdx_opts_free(o);
    return r;
}

/* base <- a, open for reading. */
static avhdx_disk *chain(void)
{
    avhdx_disk *disk;

    if (!exists(tmp("a.avhdx"))) {
        NEED(create(tmp("base.vhdx"), "size=8M,block-size=1M") == 0);
        NEED((disk = open_with(tmp("base.vhdx"), "")) != NULL);
        fill(model, 3 * MIB, 1);
        NEED(avhdx_pwrite(disk, model, 3 * MIB, 0, 0) == 0);
        NEED(avhdx_checkpoint(disk, tmp("a.avhdx"), NULL) == 0);
        fill(model + 2 * MIB, 5000, 2);
        NEED(avhdx_pwrite(disk, model + 2 * MIB, 5000, 2 * MIB, 0) == 0);
        NEED(avhdx_close(disk) == 0);
    }
    NEED((disk = open_with(tmp("a.avhdx"), "read-only")) != NULL);
    return disk;
}

static void reads_as_the_model(const char *path, int layers)
{
    avhdx_disk *disk = open_with(path, "read-only");

    NEED(disk != NULL);
    CHECK_INT(avhdx_layer_count(disk), layers);
    CHECK_INT(avhdx_get_size(disk), DISK_SIZE);
    CHECK_OK(avhdx_pread(disk, buf, DISK_SIZE, 0));
    CHECK(memcmp(buf, model, DISK_SIZE) == 0);
    CHECK_OK(avhdx_close(disk));
    CHECK_OK(errors_in(path));
}

static void every_format_and_back(void)
{
    avhdx_disk *disk = chain();
    FILE *raw;

    CHECK_INT(avhdx_has("vhd"), 1);
    CHECK_INT(avhdx_has("convert"), 1);
    CHECK_INT(avhdx_has("migrate"), 1);
    CHECK_OK(convert_with(disk, tmp("flat.vhdx"), "block-size=2M"));
    reads_as_the_model(tmp("flat.vhdx"), 1);
    CHECK_OK(convert_with(disk, tmp("fixed"), "to=vhdx,type=fixed"));
    reads_as_the_model(tmp("fixed"), 1);
    CHECK_OK(convert_with(disk, tmp("dynamic.vhd"), ""));
    CHECK_OK(convert_with(disk, tmp("fixed.vhd"), "type=fixed"));
    CHECK_OK(migrate_with(tmp("dynamic.vhd"), tmp("1.vhdx"), "search=/nonexistent"));
    reads_as_the_model(tmp("1.vhdx"), 1);
    CHECK_OK(migrate_with(tmp("fixed.vhd"), tmp("2.vhdx"), "chain,block-size=4M"));
    reads_as_the_model(tmp("2.vhdx"), 1);
    CHECK_OK(convert_with(disk, tmp("copy.vhdx"), "mode=copy,threads=2"));
    reads_as_the_model(tmp("copy.vhdx"), 1);
    CHECK_OK(convert_with(disk, tmp("raw"), ""));
    NEED((raw = fopen(tmp("raw"), "rb")) != NULL);
    CHECK_INT(fread(buf, 1, DISK_SIZE, raw), DISK_SIZE);
    CHECK(memcmp(buf, model, DISK_SIZE) == 0);
    fclose(raw);
    CHECK_OK(avhdx_close(disk));
}

static void a_child_holds_what_differs(void)
{
    avhdx_disk *disk = chain();
    char line[300];

    snprintf(line, sizeof line, "parent=%s", tmp("base.vhdx"));
    CHECK_OK(convert_with(disk, tmp("child.avhdx"), line));
    snprintf(line, sizeof line, "mode=reflink,parent=%s", tmp("base.vhdx"));
    CHECK_FAILS(convert_with(disk, tmp("no"), line), EINVAL, AVHDX_ERR_ARGUMENT);
    reads_as_the_model(tmp("child.avhdx"), 2);
    CHECK_OK(avhdx_close(disk));
}

static void what_cannot_be(void)
{
    avhdx_disk *disk = chain();

    CHECK_FAILS(convert_with(disk, tmp("base.vhdx"), ""), EEXIST, AVHDX_ERR_IO);
    CHECK_FAILS(convert_with(disk, tmp("no"), "to=raw,block-size=1M"), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(convert_with(disk, tmp("no"), "layer=2"), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(convert_with(disk, tmp("no"), "search=/x"), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(convert_with(disk, tmp("none/no"), ""), ENOENT, AVHDX_ERR_IO);
    CHECK_FAILS(migrate_with(tmp("base.vhdx"), tmp("no"), ""), EMEDIUMTYPE, AVHDX_ERR_NOT_VHDX);
    CHECK_FAILS(migrate_with(tmp("none"), tmp("no"), ""), ENOENT, AVHDX_ERR_IO);
    CHECK(!exists(tmp("no")));
    CHECK_OK(avhdx_close(disk));
}

static int stop(void *user, uint64_t done, uint64_t total)
{
    CHECK(done <= total);
    ++*(int *)user;
    return 1;
}

static void cancelled_leaves_nothing(void)
{
    avhdx_disk *disk = chain();
    int calls = 0;
    avhdx_progress_cb cb = { stop, &calls, NULL };

    CHECK_FAILS(avhdx_convert(disk, tmp("no"), NULL, &cb), ECANCELED, AVHDX_ERR_CANCELLED);
    CHECK(calls == 1 && !exists(tmp("no")));
    CHECK_OK(avhdx_close(disk));
}

int main(void)
{
    model = calloc(1, DISK_SIZE);
    buf = malloc(DISK_SIZE);
    NEED(model && buf);
    RUN(every_format_and_back);
    RUN(a_child_holds_what_differs);
    RUN(what_cannot_be);
    RUN(cancelled_leaves_nothing);
    free(model);
    free(buf);
    return check_end();
}
