/* Merges a checkpoint into its parent, or with all that is between into an older ancestor. Says how far it is; SIGINT
 * (Ctrl-C) stops it, and the same command run again finishes it.
 *
 *     merge CHILD [DEST [OPTIONS]]        OPTIONS: key=value,... of avhdx_schema_json("merge") and ("open")
 *
 * Wherever it is stopped, the disk opens at CHILD and reads the same; CHILD is removed last. A disk that is in use is
 * locked, and merged by the program that has it open: avhdx_merge.
 *
 * Build with: cc -o merge merge.c $(pkg-config --cflags --libs avhdx)
 */
#define _POSIX_C_SOURCE 200809L
#include <avhdx.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

static volatile sig_atomic_t interrupted;

static void interrupt(int signal)
{
    (void)signal;
    interrupted = 1;
}

struct meter {
    int percent; /* the last that was printed; -1: none */
};

/* Called on the thread that merges, after each piece. A result other than 0 asks to stop. */
static int show(void *user, uint64_t done, uint64_t total)
{
    struct meter *meter = user;
    int percent = total ? (int)((double)done / (double)total * 100) : 100; /* total may grow; it stays >= done */

    if (percent != meter->percent) {
        printf("\r%3d%% of %" PRIu64 " MiB", percent, total >> 20);
        fflush(stdout);
        meter->percent = percent;
    }
    return interrupted;
}

int main(int argc, char **argv)
{
    struct meter meter = { -1 };
    /* It is copied, and meter outlives the call: nothing to free. */
    const avhdx_progress_cb progress = { show, &meter, NULL };
    const char *dest = argc > 2 ? argv[2] : NULL; /* NULL: the parent */
    const char *cause, *hint;
    struct sigaction action;
    avhdx_opts *opts;
    int r = 0;

    if (argc < 2 || argc > 4) {
        fprintf(stderr, "usage: merge CHILD [DEST [OPTIONS]]\n");
        return 2;
    }

    /* The library handles no signals; the handler only sets a flag. */
    memset(&action, 0, sizeof action);
    action.sa_handler = interrupt;
    action.sa_flags = SA_RESTART;
    sigaction(SIGINT, &action, NULL);

    opts = avhdx_opts_new();
    if (argc > 3)
        r = avhdx_opts_parse(opts, argv[3]);
    if (r == 0)
        r = avhdx_merge_path(argv[1], dest, opts, &progress);
    avhdx_opts_free(opts);

    if (meter.percent >= 0)
        putchar('\n');
    if (r == 0) {
        puts("merged");
        return 0;
    }
    cause = avhdx_error_cause(NULL);
    hint = avhdx_error_hint(NULL);
    fprintf(stderr, "merge: %s%s%s\n", avhdx_error_message(NULL), *cause ? ": " : "", cause);
    if (*hint)
        fprintf(stderr, "merge: %s\n", hint);
    /* Being asked to stop is no failure of the merge; shells say 130 for SIGINT. */
    return avhdx_error_code(NULL) == AVHDX_ERR_CANCELLED ? 130 : 1;
}
