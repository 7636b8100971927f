/* Options: keys, values, lines, schema; what is wrong is named, with the nearest right. */
#include "check.h"

int main(void)
{
    avhdx_opts *o = avhdx_opts_new();
    CHECK(o != NULL);
    CHECK(avhdx_opts_set_str(o, "search", "/a:/b") == 0);
    CHECK(avhdx_opts_set_bool(o, "read-only", 1) == 0);
    CHECK(avhdx_opts_set_u64(o, "lock-timeout-ms", 100) == 0);
    CHECK(avhdx_opts_set_str(o, "size", "64k") == 0);
    CHECK(avhdx_opts_parse(o, "log=memory,lock=off,drive-map=C:=/mnt/c,meta-cache-size=8M,read-only") == 0);
    CHECK_FAILS(avhdx_opts_set_str(o, "serch", "/a"), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK(strstr(avhdx_error_message(avhdx_last_error()), "serch") != NULL);
    CHECK(strstr(avhdx_error_hint(avhdx_last_error()), "search") != NULL);
    CHECK_FAILS(avhdx_opts_set_str(o, "lock", "perhaps"), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_opts_set_str(o, "size", "12q"), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_opts_parse(o, "lock=on,nonsense=1"), EINVAL, AVHDX_ERR_ARGUMENT);
    avhdx_opts_free(o);

    const char *kinds[] = {"open", "create", "checkpoint", "merge", "check"};
    for (int i = 0; i < 5; i++) {
        char *json = avhdx_schema_json(kinds[i]);
        CHECK(json != NULL && json[0] == '[' && strstr(json, "\"meaning\"") != NULL);
        avhdx_free(json);
    }
    CHECK(avhdx_schema_json("nothing") == NULL);
    CHECK(avhdx_has("merge.consume") == 1 && avhdx_has("teleport") == 0);
    CHECK(strcmp(avhdx_version(), "1.0.0") == 0);
    return 0;
}
