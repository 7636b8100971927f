/* The log sink: refused levels, freed once, silent when removed; without one the library prints nothing. */
#include "check.h"

#include <fcntl.h>

static unsigned freed, messages;

static void message(void *user, uint32_t level, const char *text)
{
    CHECK(user == &freed);
    CHECK(level >= AVHDX_LOG_ERROR && level <= AVHDX_LOG_DEBUG);
    CHECK(text[0] && strchr(text, '\n') == NULL);
    messages++;
}

static void count_free(void *user)
{
    CHECK(user == &freed);
    freed++;
}

static void set_replaced_removed(void)
{
    avhdx_log_cb cb = { message, &freed, count_free };

    CHECK_OK(avhdx_set_log(&cb, AVHDX_LOG_DEBUG));
    CHECK_INT(freed, 0);
    CHECK_OK(avhdx_set_log(&cb, AVHDX_LOG_WARN));
    CHECK_INT(freed, 1);
    CHECK_OK(avhdx_set_log(NULL, 0));
    CHECK_INT(freed, 2);
    CHECK_FAILS(avhdx_set_log(&cb, 0), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_set_log(&cb, 5), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_INT(freed, 4);
    CHECK_FAILS(avhdx_set_log(NULL, AVHDX_LOG_WARN), EINVAL, AVHDX_ERR_ARGUMENT);
    cb.fn = NULL;
    CHECK_FAILS(avhdx_set_log(&cb, AVHDX_LOG_WARN), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_INT(freed, 5);
}

static int nonsense(void *user, const struct avhdx_parent_query *query, char *path, size_t size)
{
    (void)user;
    (void)query;
    memset(path, 'x', size);
    return 1;
}

static void hears_warnings(void)
{
    avhdx_log_cb cb = { message, &freed, NULL };
    avhdx_resolve_cb resolver = { nonsense, NULL, NULL };
    avhdx_opts *o = avhdx_opts_new();
    avhdx_disk *disk;
    char line[300];

    NEED(create(tmp("base.vhdx"), "size=1M,block-size=1M") == 0);
    snprintf(line, sizeof line, "type=differencing,parent=%s", tmp("base.vhdx"));
    NEED(create(tmp("child.avhdx"), line) == 0);
    CHECK_OK(avhdx_opts_set_resolver(o, &resolver));
    messages = 0;
    CHECK_OK(avhdx_set_log(&cb, AVHDX_LOG_WARN));
    CHECK_OK(avhdx_open(&disk, tmp("child.avhdx"), o));
    CHECK(messages > 0);
    CHECK_OK(avhdx_close(disk));
    CHECK_OK(avhdx_set_log(NULL, 0));
    avhdx_opts_free(o);
}

static void prints_nothing(void)
{
    int saved[2], file;
    avhdx_disk *disk;

    NEED((file = open(tmp("output"), O_CREAT | O_RDWR, 0600)) >= 0);
    fflush(NULL);
    saved[0] = dup(1);
    saved[1] = dup(2);
    dup2(file, 1);
    dup2(file, 2);
    avhdx_open(&disk, "/nonexistent", NULL);
    avhdx_open(&disk, "/dev/null", NULL);
    avhdx_pread(NULL, NULL, 1, 1);
    dup2(saved[0], 1);
    dup2(saved[1], 2);
    CHECK_INT(lseek(file, 0, SEEK_END), 0);
    close(file);
    close(saved[0]);
    close(saved[1]);
}

int main(void)
{
    RUN(set_replaced_removed);
    RUN(hears_warnings);
    RUN(prints_nothing);
    return check_end();
}
