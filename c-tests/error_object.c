/* The error object: of its thread, until the thread's next failure, longer when kept. */
#include "check.h"
#include <pthread.h>

static void *elsewhere(void *unused)
{
    (void)unused;
    CHECK(avhdx_error_code(avhdx_last_error()) == 0);
    CHECK(avhdx_flush(NULL) < 0);
    return NULL;
}

int main(void)
{
    avhdx_disk *d;
    CHECK(avhdx_last_error() != NULL);
    CHECK(avhdx_error_code(avhdx_last_error()) == 0);
    CHECK(avhdx_error_layer(avhdx_last_error()) == -1);
    CHECK(avhdx_open(&d, "/does/not/exist.vhdx", NULL) == -ENOENT);
    const avhdx_error *e = avhdx_last_error();
    CHECK(avhdx_error_code(e) == AVHDX_ERR_IO);
    CHECK(avhdx_error_errno(e) == ENOENT);
    CHECK(strcmp(avhdx_error_path(e), "/does/not/exist.vhdx") == 0);
    CHECK(strstr(avhdx_error_message(e), "cannot open") != NULL);
    CHECK(avhdx_error_hint(e) != NULL && avhdx_error_cause(e) != NULL);
    avhdx_error *kept = avhdx_error_dup(e);

    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, elsewhere, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(avhdx_error_code(avhdx_last_error()) == AVHDX_ERR_IO);

    CHECK(avhdx_flush(NULL) == -EINVAL);
    CHECK(avhdx_error_code(avhdx_last_error()) == AVHDX_ERR_ARGUMENT);
    CHECK(avhdx_error_code(kept) == AVHDX_ERR_IO);
    avhdx_error_free(kept);

    CHECK(strcmp(avhdx_code_name(AVHDX_ERR_LOCKED), "LOCKED") == 0);
    CHECK(strcmp(avhdx_code_name(0), "OK") == 0);
    CHECK(avhdx_code_name(12345) == NULL);
    return 0;
}
