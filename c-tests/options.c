/* Options by name: values in every form, refusals that name key, value and neighbour, and the schema. */
#include "check.h"

static void accepted(void)
{
    avhdx_opts *o = avhdx_opts_new();

    CHECK_OK(avhdx_opts_set_str(o, "read-only", "yes"));
    CHECK_OK(avhdx_opts_set_str(o, "read-only", "OFF"));
    CHECK_OK(avhdx_opts_set_bool(o, "read-only", 1));
    CHECK_OK(avhdx_opts_set_u64(o, "size", UINT64_C(64) << 40));
    CHECK_OK(avhdx_opts_set_str(o, "size", "64k"));
    CHECK_OK(avhdx_opts_set_str(o, "block-size", "2M"));
    CHECK_OK(avhdx_opts_set_str(o, "drive-map", "C:=/mnt/c;\\\\srv\\share=/mnt/s"));
    CHECK_OK(avhdx_opts_set_str(o, "search", "/not utf-8 \xff:/b"));
    CHECK_OK(avhdx_opts_parse(o, "mode=copy,unlink=off,verify"));
    CHECK_OK(avhdx_opts_parse(o, ""));
    avhdx_opts_free(o);
}

static void refused(void)
{
    avhdx_opts *o = avhdx_opts_new();

    CHECK_FAILS(avhdx_opts_set_str(o, "readonly", "on"), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_HAS(avhdx_error_message(NULL), "\"readonly\"");
    CHECK_HAS(avhdx_error_hint(NULL), "'read-only'");
    CHECK_FAILS(avhdx_opts_set_str(o, "read-only", "maybe"), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_HAS(avhdx_error_message(NULL), "'read-only'");
    CHECK_HAS(avhdx_error_message(NULL), "\"maybe\"");
    CHECK_FAILS(avhdx_opts_set_str(o, "size", "-1"), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_opts_set_str(o, "size", "99999999999G"), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_opts_set_str(o, "log", "later"), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_HAS(avhdx_error_message(NULL), "auto, memory, replay, refuse");
    CHECK_FAILS(avhdx_opts_set_str(o, "re\xff", "on"), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_opts_set_u64(o, "max-depth", 257), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_opts_parse(o, "=x"), EINVAL, AVHDX_ERR_ARGUMENT);
    avhdx_opts_free(o);
}

static void line_is_taken_whole_or_not_at_all(void)
{
    avhdx_disk *disk;
    avhdx_opts *o = avhdx_opts_new();
    char byte = 1;

    NEED(create(tmp("d.vhdx"), "size=1M,block-size=1M") == 0);
    CHECK_FAILS(avhdx_opts_parse(o, "read-only,lock=perhaps"), EINVAL, AVHDX_ERR_ARGUMENT);
    NEED(avhdx_open(&disk, tmp("d.vhdx"), o) == 0);
    CHECK_OK(avhdx_pwrite(disk, &byte, 1, 0, 0));
    CHECK_OK(avhdx_close(disk));
    avhdx_opts_free(o);
}

static void key_for_another_call(void)
{
    avhdx_disk *disk;
    avhdx_opts *o = opts("size=1M");

    CHECK_FAILS(avhdx_open(&disk, tmp("d.vhdx"), o), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_HAS(avhdx_error_message(NULL), "'size' is for create, not for open");
    CHECK(disk == NULL);
    avhdx_opts_free(o);
    NEED((disk = open_with(tmp("d.vhdx"), "")) != NULL);
    o = opts("read-only");
    CHECK_FAILS(avhdx_checkpoint(disk, tmp("c.avhdx"), o), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK(!exists(tmp("c.avhdx")));
    avhdx_opts_free(o);
    CHECK_OK(avhdx_close(disk));
}

static void unusable_combinations(void)
{
    CHECK_INT(create(tmp("x.vhdx"), "size=1000"), -EINVAL);
    CHECK_INT(create(tmp("x.vhdx"), "size=1M,block-size=3M"), -EINVAL);
    CHECK_INT(create(tmp("x.vhdx"), "size=1M,logical-sector-size=1k"), -EINVAL);
    CHECK_INT(create(tmp("x.vhdx"), "type=differencing"), -EINVAL);
    CHECK_INT(create(tmp("x.vhdx"), "size=65T"), -EINVAL);
    CHECK_INT(create(tmp("x.vhdx"), "size=1M,log-size=1000"), -EINVAL);
    CHECK_INT(avhdx_error_code(NULL), AVHDX_ERR_ARGUMENT);
    CHECK(!exists(tmp("x.vhdx")));
    CHECK_INT(create(tmp("d.vhdx"), "size=1M"), -EEXIST);
}

static void schema(void)
{
    static const char *const kinds[] = { "open", "create", "checkpoint", "merge", "check" };
    size_t i;

    for (i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char *json = avhdx_schema_json(kinds[i]);
        CHECK(json && json[0] == '[');
        CHECK_HAS(json, "\"name\":");
        CHECK_HAS(json, "\"since\":\"1.0\"");
        avhdx_free(json);
    }
    CHECK(avhdx_schema_json("nonsense") == NULL);
    CHECK_INT(avhdx_error_code(NULL), AVHDX_ERR_ARGUMENT);
}

static void features_and_version(void)
{
    char version[32];

    CHECK_INT(avhdx_has("merge"), 1);
    CHECK_INT(avhdx_has("merge.consume"), 1);
    CHECK_INT(avhdx_has("teleport"), 0);
    snprintf(version, sizeof version, "%d.%d.%d", AVHDX_VERSION_MAJOR, AVHDX_VERSION_MINOR, AVHDX_VERSION_MICRO);
    CHECK_STR(avhdx_version(), version);
}

int main(void)
{
    RUN(accepted);
    RUN(refused);
    RUN(line_is_taken_whole_or_not_at_all);
    RUN(key_for_another_call);
    RUN(unusable_combinations);
    RUN(schema);
    RUN(features_and_version);
    return check_end();
}
