/* The last error belongs to its thread, survives successes, can be kept, and always has text. */
#include "check.h"

#include <pthread.h>

static void before_any_failure(void)
{
    const avhdx_error *error = avhdx_last_error();

    CHECK(error != NULL);
    CHECK_INT(avhdx_error_code(error), 0);
    CHECK_INT(avhdx_error_errno(error), 0);
    CHECK_INT(avhdx_error_hresult(error), 0);
    CHECK_INT(avhdx_error_layer(error), -1);
    CHECK_INT(avhdx_error_offset(error), -1);
    CHECK_STR(avhdx_error_message(error), "no error");
    CHECK_STR(avhdx_error_hint(error), "");
    CHECK_STR(avhdx_error_path(error), "");
    CHECK_STR(avhdx_error_cause(error), "");
}

static void all_of_it(void)
{
    const avhdx_error *error;
    avhdx_disk *disk;

    CHECK(avhdx_open(&disk, tmp("none"), NULL) < 0);
    error = avhdx_last_error();
    CHECK_INT(avhdx_error_code(error), AVHDX_ERR_IO);
    CHECK_INT(avhdx_error_errno(error), ENOENT);
    CHECK_STR(avhdx_error_path(error), tmp("none"));
    CHECK_HAS(avhdx_error_message(error), tmp("none"));
    CHECK(strchr(avhdx_error_message(error), '\n') == NULL);
    CHECK(avhdx_error_cause(error)[0] != 0);
    /* NULL means the last one. */
    CHECK(avhdx_error_message(NULL) == avhdx_error_message(error));
    /* Successes leave it alone. */
    CHECK_INT(avhdx_has("merge"), 1);
    CHECK(avhdx_last_error() == error);
}

static void range_has_an_offset(void)
{
    avhdx_disk *disk;
    char byte;

    NEED(create(tmp("d.vhdx"), "size=1M,block-size=1M") == 0);
    NEED((disk = open_with(tmp("d.vhdx"), "")) != NULL);
    CHECK_FAILS(avhdx_pread(disk, &byte, 1, MIB), EINVAL, AVHDX_ERR_RANGE);
    CHECK_INT(avhdx_error_offset(NULL), MIB);
    CHECK_INT(avhdx_error_hresult(NULL), 0xC03A0012);
    CHECK_OK(avhdx_close(disk));
}

static void kept(void)
{
    avhdx_error *copy;
    avhdx_disk *disk;

    CHECK(avhdx_open(&disk, tmp("first"), NULL) < 0);
    copy = avhdx_error_dup(avhdx_last_error());
    NEED(copy != NULL);
    CHECK(avhdx_pread(NULL, NULL, 1, 0) < 0);
    CHECK_INT(avhdx_error_code(copy), AVHDX_ERR_IO);
    CHECK_STR(avhdx_error_path(copy), tmp("first"));
    CHECK_INT(avhdx_error_code(NULL), AVHDX_ERR_ARGUMENT);
    avhdx_error_free(copy);
}

static void *other_thread(void *copy)
{
    CHECK_INT(avhdx_error_code(NULL), 0);
    CHECK(avhdx_flush(NULL) < 0);
    CHECK_INT(avhdx_error_code(NULL), AVHDX_ERR_ARGUMENT);
    CHECK_INT(avhdx_error_code(copy), AVHDX_ERR_IO);
    avhdx_error_free(copy);
    return NULL;
}

static void each_thread_its_own(void)
{
    avhdx_disk *disk;
    pthread_t thread;

    CHECK(avhdx_open(&disk, tmp("first"), NULL) < 0);
    NEED(pthread_create(&thread, NULL, other_thread, avhdx_error_dup(avhdx_last_error())) == 0);
    pthread_join(thread, NULL);
    CHECK_INT(avhdx_error_code(NULL), AVHDX_ERR_IO);
}

static void names(void)
{
    CHECK_STR(avhdx_code_name(0), "OK");
    CHECK_STR(avhdx_code_name(AVHDX_ERR_NOT_VHDX), "NOT_VHDX");
    CHECK_STR(avhdx_code_name(AVHDX_ERR_PARENT_NOT_FOUND), "PARENT_NOT_FOUND");
    CHECK_STR(avhdx_code_name(AVHDX_ERR_BUG), "BUG");
    CHECK_STR(avhdx_code_name(4711), "UNKNOWN");
    CHECK_STR(avhdx_code_name(-1), "UNKNOWN");
}

/* Control characters of a hostile file name do not reach a terminal through the message; the path is as it is. */
static void hostile_names(void)
{
    const char *path = tmp("evil\n\033[31m\xff");
    avhdx_disk *disk;

    CHECK(avhdx_open(&disk, path, NULL) < 0);
    CHECK(strchr(avhdx_error_message(NULL), '\n') == NULL);
    CHECK(strchr(avhdx_error_message(NULL), '\033') == NULL);
    CHECK_STR(avhdx_error_path(NULL), path);
}

int main(void)
{
    RUN(before_any_failure);
    RUN(all_of_it);
    RUN(range_has_an_offset);
    RUN(kept);
    RUN(each_thread_its_own);
    RUN(names);
    RUN(hostile_names);
    return check_end();
}
