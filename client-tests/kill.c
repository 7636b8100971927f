/* Kills nbdkit in the middle of random writes, again and again: kill ROUNDS SEED AVHDX CHECKED... -- NBDKIT...
 * After each kill every CHECKED file passes `AVHDX check`, and each unit of the disk holds what was flushed last or
 * something written since. NBDKIT... is the command of the server, on the socket named by the variable SOCKET. */
#include <errno.h>
#include <inttypes.h>
#include <libnbd.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define UNIT 4096
#define DEPTH 16
/* Contents a unit may have after a kill: the flushed one and those written since. */
#define MAYBE 64

struct unit {
    uint32_t value[MAYBE];
    int n;
};

static uint64_t state;
static struct unit *units;
static uint64_t n_units;
static uint32_t written;

static uint64_t next(void)
{
    uint64_t z = (state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, nbd_get_error());
    exit(1);
}

static pid_t start(char **command)
{
    pid_t pid = fork();

    if (pid == 0) {
        execvp(command[0], command);
        _exit(127);
    }
    return pid;
}

static void run(char **command)
{
    int status;

    waitpid(start(command), &status, 0);
    if (status != 0) {
        fprintf(stderr, "%s %s %s: status %#x\n", command[0], command[1], command[2], status);
        exit(1);
    }
}

static struct nbd_handle *connect_to(const char *socket)
{
    const struct timespec wait = { 0, 20000000 };

    for (int i = 0; i < 500; i++) {
        struct nbd_handle *nbd = nbd_create();

        if (nbd && nbd_connect_unix(nbd, socket) == 0)
            return nbd;
        nbd_close(nbd);
        nanosleep(&wait, NULL);
    }
    die("the server does not answer");
    return NULL;
}

/* Reads all; each unit must be something it may be, and is then just that. */
static void verify(struct nbd_handle *nbd)
{
    static uint32_t buf[UNIT / 4];

    for (uint64_t i = 0; i < n_units; i++) {
        struct unit *u = &units[i];
        bool known = false;

        if (nbd_pread(nbd, buf, UNIT, i * UNIT, 0) < 0)
            die("read");
        for (int k = 0; k < u->n; k++)
            known |= u->value[k] == buf[0];
        for (int k = 1; k < UNIT / 4; k++)
            known &= buf[k] == buf[0];
        if (!known) {
            fprintf(stderr, "unit %" PRIu64 " holds %" PRIu32 ", flushed was %" PRIu32 " and %d others since\n", i,
                    buf[0], u->value[0], u->n - 1);
            exit(1);
        }
        u->value[0] = buf[0];
        u->n = 1;
    }
}

/* Writes with DEPTH requests in flight and flushes in between, until told to stop. */
static void mess_about(struct nbd_handle *nbd, long operations)
{
    static uint32_t bufs[DEPTH][UNIT / 4];
    int64_t cookie[DEPTH] = { 0 }, flush = 0;
    struct unit *flushed = NULL;

    for (long i = 0; i < operations;) {
        int slot = -1;

        for (int k = 0; k < DEPTH; k++) {
            if (cookie[k] && nbd_aio_command_completed(nbd, (uint64_t)cookie[k]) == 1)
                cookie[k] = 0;
            if (!cookie[k])
                slot = k;
        }
        if (flush && nbd_aio_command_completed(nbd, (uint64_t)flush) == 1) {
            flush = 0;
            /* What had completed when it was sent is there for good. */
            for (uint64_t k = 0; k < n_units; k++) {
                int old = flushed[k].n - 1;

                memmove(units[k].value, units[k].value + old, sizeof units[k].value[0] * (size_t)(units[k].n - old));
                units[k].n -= old;
            }
            free(flushed);
            flushed = NULL;
        }
        if (!flush && i % 97 == 96) {
            bool idle = true;

            for (int k = 0; k < DEPTH; k++)
                idle &= !cookie[k];
            if (idle) {
                flushed = malloc(n_units * sizeof *units);
                if (!flushed)
                    exit(2);
                memcpy(flushed, units, n_units * sizeof *units);
                flush = nbd_aio_flush(nbd, NBD_NULL_COMPLETION, 0);
                i++;
            } else if (nbd_poll(nbd, 100) < 0) {
                die("poll");
            }
            continue;
        }
        if (slot >= 0) {
            uint64_t at = next() % n_units;
            struct unit *u = &units[at];
            bool busy = u->n == MAYBE;

            /* Two writes in flight to one unit have no order: leave those out. */
            for (int k = 0; k < DEPTH; k++)
                busy |= cookie[k] && bufs[k][0] == u->value[u->n - 1];
            if (!busy) {
                written++;
                for (int k = 0; k < UNIT / 4; k++)
                    bufs[slot][k] = written;
                u->value[u->n++] = written;
                cookie[slot] = nbd_aio_pwrite(nbd, bufs[slot], UNIT, at * UNIT, NBD_NULL_COMPLETION, 0);
                if (cookie[slot] < 0)
                    die("write");
            }
            i++;
        } else if (nbd_poll(nbd, 100) < 0) {
            die("poll");
        }
        if (slot >= 0 && nbd_aio_is_dead(nbd))
            die("the server hung up");
    }
    free(flushed);
}

int main(int argc, char **argv)
{
    const char *socket = getenv("SOCKET");
    char **command = argv;
    long rounds;

    if (argc < 7 || !socket)
        return 2;
    rounds = atol(argv[1]);
    state = strtoull(argv[2], NULL, 0);
    while (*command && strcmp(*command, "--") != 0)
        command++;
    if (!*command++)
        return 2;
    for (long round = 0; round <= rounds; round++) {
        pid_t server;
        struct nbd_handle *nbd;

        unlink(socket);
        server = start(command);
        nbd = connect_to(socket);
        if (!units) {
            n_units = (uint64_t)nbd_get_size(nbd) / UNIT;
            units = calloc(n_units, sizeof *units);
            for (uint64_t i = 0; units && i < n_units; i++)
                units[i].n = 1;
            if (!units)
                return 2;
        }
        verify(nbd);
        if (round < rounds)
            mess_about(nbd, (long)(50 + next() % 1500));
        if (round == rounds)
            nbd_shutdown(nbd, 0);
        kill(server, round < rounds ? SIGKILL : SIGTERM);
        waitpid(server, NULL, 0);
        nbd_close(nbd);
        for (char **file = argv + 4; strcmp(*file, "--") != 0; file++)
            run((char *[]){ argv[3], "check", *file, NULL });
    }
    printf("%ld kills, %" PRIu32 " writes\n", rounds, written);
    free(units);
    return 0;
}
