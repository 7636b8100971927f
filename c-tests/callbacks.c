/* A callback's free runs exactly once: after success, after failure, when replaced, and when whoever holds it goes. */
#include "check.h"

static unsigned freed, called;

static void count_free(void *user)
{
    CHECK(user == &freed);
    freed++;
}

static int never(void *user, uint64_t done, uint64_t total)
{
    (void)user;
    (void)done;
    (void)total;
    return 0;
}

static void progress_is_freed_when_the_call_fails(void)
{
    avhdx_progress_cb cb = { never, &freed, count_free }, without = { NULL, &freed, count_free };
    avhdx_opts *wrong = opts("size=1M");

    freed = 0;
    CHECK(avhdx_merge(NULL, 0, 1, NULL, &cb) < 0);
    CHECK_INT(freed, 1);
    CHECK(avhdx_merge_path(NULL, NULL, NULL, &cb) < 0);
    CHECK_INT(freed, 2);
    CHECK(avhdx_merge_path("/nonexistent", NULL, wrong, &cb) < 0);
    CHECK_INT(freed, 3);
    CHECK_FAILS(avhdx_merge(NULL, 0, 1, NULL, &without), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_HAS(avhdx_error_message(NULL), "fn");
    CHECK_INT(freed, 4);
    avhdx_opts_free(wrong);
}

static void check_is_freed_when_the_call_fails(void)
{
    avhdx_issue_cb cb = { NULL, &freed, count_free };

    freed = 0;
    CHECK(avhdx_check(NULL, NULL, NULL, &cb) < 0);
    CHECK_INT(freed, 1);
}

static int resolve(void *user, const struct avhdx_parent_query *query, char *path, size_t size)
{
    const char *answer = tmp("moved/renamed.vhdx");
    uint32_t i, relative = 0;

    CHECK(user == &freed);
    CHECK_INT(query->struct_size, sizeof *query);
    CHECK_HAS(query->child, "child.avhdx");
    CHECK(!all(query->linkage, 16, 0));
    for (i = 0; i < query->entry_count; i++)
        relative += strcmp(query->keys[i], "relative_path") == 0 && strstr(query->values[i], "base.vhdx");
    CHECK_INT(relative, 1);
    CHECK(size >= 4096);
    called++;
    NEED(strlen(answer) < size);
    strcpy(path, answer);
    return 1;
}

static int no_answer(void *user, const struct avhdx_parent_query *query, char *path, size_t size)
{
    (void)user;
    (void)query;
    memset(path, 'x', size); /* and no NUL */
    called++;
    return 1;
}

static void resolver(void)
{
    avhdx_resolve_cb cb = { resolve, &freed, count_free };
    avhdx_opts *o = avhdx_opts_new();
    avhdx_disk *disk;
    char line[300];

    freed = called = 0;
    NEED(mkdir(tmp("moved"), 0700) == 0);
    NEED(create(tmp("base.vhdx"), "size=1M,block-size=1M") == 0);
    snprintf(line, sizeof line, "type=differencing,parent=%s", tmp("base.vhdx"));
    NEED(create(tmp("child.avhdx"), line) == 0);
    NEED(rename(tmp("base.vhdx"), tmp("moved/renamed.vhdx")) == 0);
    CHECK(avhdx_open(&disk, tmp("child.avhdx"), NULL) < 0);
    CHECK_OK(avhdx_opts_set_resolver(o, &cb));
    CHECK_OK(avhdx_open(&disk, tmp("child.avhdx"), o));
    CHECK_INT(called, 1);
    CHECK_HAS(avhdx_layer_path(disk, 1), "renamed.vhdx");
    /* The disk may still need it. */
    avhdx_opts_free(o);
    CHECK_INT(freed, 0);
    CHECK_OK(avhdx_close(disk));
    CHECK_INT(freed, 1);

    /* Replaced and removed. */
    o = avhdx_opts_new();
    cb.fn = no_answer;
    CHECK_OK(avhdx_opts_set_resolver(o, &cb));
    CHECK_OK(avhdx_opts_set_resolver(o, &cb));
    CHECK_INT(freed, 2);
    called = 0;
    CHECK_FAILS(avhdx_open(&disk, tmp("child.avhdx"), o), ENOENT, AVHDX_ERR_PARENT_NOT_FOUND);
    CHECK_INT(called, 1);
    CHECK_OK(avhdx_opts_set_resolver(o, NULL));
    CHECK_INT(freed, 3);
    cb.fn = NULL;
    CHECK(avhdx_opts_set_resolver(o, &cb) < 0);
    CHECK_INT(freed, 4);
    avhdx_opts_free(o);
    CHECK_INT(freed, 4);
}

struct inside {
    avhdx_disk *disk;
    unsigned calls;
};

static int use_the_disk(void *user, uint64_t done, uint64_t total)
{
    struct inside *in = user;
    struct avhdx_info info = AVHDX_INFO_INIT;

    (void)done;
    (void)total;
    in->calls++;
    CHECK_OK(avhdx_get_info(in->disk, &info));
    CHECK_FAILS(avhdx_checkpoint(in->disk, tmp("inside.avhdx"), NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_merge(in->disk, 0, 1, NULL, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_close(in->disk), EINVAL, AVHDX_ERR_ARGUMENT);
    avhdx_abort(in->disk);
    return 0;
}

static void operations_from_a_callback_are_refused(void)
{
    static unsigned char buf[1 << 20];
    struct inside in = { NULL, 0 };
    avhdx_progress_cb cb = { use_the_disk, &in, NULL };

    NEED(create(tmp("outer.vhdx"), "size=8M,block-size=1M") == 0);
    NEED((in.disk = open_with(tmp("outer.vhdx"), "")) != NULL);
    NEED(avhdx_checkpoint(in.disk, tmp("outer.avhdx"), NULL) == 0);
    NEED(avhdx_pwrite(in.disk, buf, sizeof buf, 0, 0) == 0);
    CHECK_OK(avhdx_merge(in.disk, 0, 1, NULL, &cb));
    CHECK(in.calls > 0);
    CHECK_OK(avhdx_close(in.disk));
}

int main(void)
{
    RUN(progress_is_freed_when_the_call_fails);
    RUN(check_is_freed_when_the_call_fails);
    RUN(resolver);
    RUN(operations_from_a_callback_are_refused);
    return check_end();
}
