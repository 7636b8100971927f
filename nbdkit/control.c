/* The control socket. A client sends a request: a line with a verb, lines "key value", an empty line; and gets lines
 * back: "progress DONE TOTAL" any number of times, then "done ..." or "failed CODE MESSAGE" and "hint HINT".
 *
 *   info                             the disk as JSON
 *   checkpoint  to PATH              and any option of avhdx_checkpoint
 *   merge       [child N|PATH]       0, the leaf, if left out
 *               [into N|PATH]        the parent of child, if left out; and any option of avhdx_merge
 *
 * All take "export NAME". A client that goes away cancels its merge. nbdkit-avhdx-plugin(1) has the same. */
#include "control.h"

#include "exports.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

/* Clients at a time. */
#define CLIENTS 16
#define LONGEST_REQUEST 16384
/* How long a client may be silent, or not listen, before it is hung up on. */
static const struct timeval patience = { .tv_sec = 10 };

static char *path;
static int listener = -1;
static pthread_t acceptor;
static bool running;
static atomic_bool stopping;

struct client {
    pthread_t thread;
    int fd;
    bool started;
    atomic_bool finished;
};
static struct client clients[CLIENTS];

int control_set_path(const char *value)
{
    struct sockaddr_un address;

    free(path);
    path = nbdkit_absolute_path(value);
    if (!path)
        return -1;
    if (strlen(path) >= sizeof address.sun_path) {
        nbdkit_error("control=%s: a socket's path has at most %zu bytes", path, sizeof address.sun_path - 1);
        return -1;
    }
    return 0;
}

/* Removes a socket that a server left behind which is no more. */
static void remove_stale(const struct sockaddr_un *address)
{
    struct stat st;
    int fd;

    if (lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode))
        return;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof *address) < 0 && errno == ECONNREFUSED)
        unlink(path);
    if (fd >= 0)
        close(fd);
}

int control_bind(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    mode_t mask;
    int r;

    if (!path)
        return 0;
    strcpy(address.sun_path, path);
    remove_stale(&address);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    /* Whoever may connect may change the chain. */
    mask = umask(077);
    r = listener < 0 ? -1 : bind(listener, (const struct sockaddr *)&address, sizeof address);
    umask(mask);
    if (r < 0 || listen(listener, CLIENTS) < 0) {
        nbdkit_error("control=%s: %m", path);
        return -1;
    }
    return 0;
}

/* ---- one client ---- */

struct request {
    char *verb;
    const char *export;
    const char *to;
    const char *child;
    const char *into;
    avhdx_opts *opts;
};

static bool reply(int fd, const char *line)
{
    size_t left = strlen(line);

    while (left) {
        ssize_t n = send(fd, line, left, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        line += n;
        left -= (size_t)n;
    }
    return true;
}

static void reply_failed(int fd, int code, const char *message, const char *hint)
{
    char *line;

    if (asprintf(&line, "failed %s %s\n%s%s%s", avhdx_code_name(code), message, *hint ? "hint " : "", hint,
                 *hint ? "\n" : "") < 0)
        return;
    reply(fd, line);
    free(line);
}

static void reply_failure(int fd)
{
    const struct failure *failure = exports_failure();

    reply_failed(fd, failure->code, failure->message, failure->hint);
}

static int on_progress(void *user, uint64_t done, uint64_t total)
{
    char line[64];

    /* A client that does not read, stopped perhaps, misses lines; the merge goes on. */
    snprintf(line, sizeof line, "progress %" PRIu64 " %" PRIu64 "\n", done, total);
    return stopping || (send(*(int *)user, line, strlen(line), MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN);
}

/* Reads up to the empty line; false if there is none. */
static bool receive(int fd, char *text)
{
    size_t n = 0;

    while (n < LONGEST_REQUEST - 1) {
        ssize_t r = recv(fd, text + n, LONGEST_REQUEST - 1 - n, 0);

        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0)
            return false;
        n += (size_t)r;
        text[n] = 0;
        if (strlen(text) != n)
            return false;
        if (n >= 2 && strcmp(text + n - 2, "\n\n") == 0)
            return true;
    }
    return false;
}

static int parse(char *text, struct request *request)
{
    char *line;
    int r;

    request->verb = strsep(&text, "\n");
    while ((line = strsep(&text, "\n")) && *line) {
        char *value = strchr(line, ' ');

        if (value)
            *value++ = 0;
        if (value && strcmp(line, "export") == 0)
            request->export = value;
        else if (value && strcmp(line, "to") == 0)
            request->to = value;
        else if (value && strcmp(line, "child") == 0)
            request->child = value;
        else if (value && strcmp(line, "into") == 0)
            request->into = value;
        else if ((r = avhdx_opts_set_str(request->opts, line, value ? value : "on")) < 0)
            return say_failure(r);
    }
    return 0;
}

/* The layer named by number or path; -1 if there is none. */
static int64_t layer_of(avhdx_disk *handle, const char *name)
{
    char *end;
    unsigned long number = strtoul(name, &end, 10);
    int layers = avhdx_layer_count(handle);
    char *wanted;
    int64_t found = -1;

    if (*name >= '0' && *name <= '9' && *end == 0)
        return number < (unsigned long)layers ? (int64_t)number : -1;
    wanted = realpath(name, NULL);
    for (int i = 0; i < layers && wanted && found < 0; i++) {
        char *layer = realpath(avhdx_layer_path(handle, (uint32_t)i), NULL);

        if (layer && strcmp(layer, wanted) == 0)
            found = i;
        free(layer);
    }
    free(wanted);
    return found;
}

static void answer_info(int fd, const char *export)
{
    char *json = exports_info(export), *line;

    if (!json) {
        reply_failure(fd);
        return;
    }
    /* One line: JSON text has no newline but between its tokens. */
    for (char *c = json; *c; c++)
        if (*c == '\n')
            *c = ' ';
    if (asprintf(&line, "done %s\n", json) > 0) {
        reply(fd, line);
        free(line);
    }
    avhdx_free(json);
}

static int merge(int fd, struct disk *disk, const struct request *request)
{
    const avhdx_progress_cb progress = { on_progress, &fd, NULL };
    int64_t top = request->child ? layer_of(disk->handle, request->child) : 0;
    int64_t base = request->into ? layer_of(disk->handle, request->into) : top + 1;

    if (top < 0 || base < 0)
        return exports_refuse("the chain has no such layer", "info lists its layers");
    return exports_merge(disk, (uint32_t)top, (uint32_t)base, request->opts, &progress);
}

static int change(int fd, struct disk *disk, const struct request *request)
{
    char *line;
    int r;

    if (disk->readonly)
        return exports_refuse("the export is read-only", "name the leaf of a writable server");
    pthread_mutex_lock(&disk->changing);
    r = request->to ? exports_checkpoint(disk, request->to, request->opts) : merge(fd, disk, request);
    pthread_mutex_unlock(&disk->changing);
    if (r < 0)
        return -1;
    if (asprintf(&line, "done %s\n", avhdx_layer_path(disk->handle, 0)) > 0) {
        reply(fd, line);
        free(line);
    }
    return 0;
}

static void answer(int fd, const struct request *request)
{
    const bool checkpoint = strcmp(request->verb, "checkpoint") == 0;
    struct disk *disk;

    if (strcmp(request->verb, "info") == 0) {
        answer_info(fd, request->export);
        return;
    }
    if (!checkpoint && strcmp(request->verb, "merge") != 0) {
        reply_failed(fd, AVHDX_ERR_ARGUMENT, "the verbs are info, checkpoint and merge", "");
        return;
    }
    if (checkpoint ? !request->to || request->to[0] != '/' : request->to != NULL) {
        reply_failed(fd, AVHDX_ERR_ARGUMENT, "checkpoint, and nothing else, needs \"to\" and an absolute path", "");
        return;
    }
    disk = exports_acquire(request->export, false);
    if (!disk || change(fd, disk, request) < 0)
        reply_failure(fd);
    if (disk)
        exports_release(disk);
}

static void *serve_client(void *data)
{
    struct client *client = data;
    struct request request = { .export = "" };
    char *text = malloc(LONGEST_REQUEST);

    request.opts = avhdx_opts_new();
    if (text && receive(client->fd, text)) {
        if (parse(text, &request) < 0)
            reply_failure(client->fd);
        else
            answer(client->fd, &request);
    }
    avhdx_opts_free(request.opts);
    free(text);
    shutdown(client->fd, SHUT_RDWR);
    client->finished = true;
    return NULL;
}

/* ---- all of them ---- */

static void reap(struct client *client)
{
    pthread_join(client->thread, NULL);
    close(client->fd);
    client->started = false;
}

static struct client *free_client(void)
{
    for (struct client *c = clients; c < clients + CLIENTS; c++) {
        if (c->started && c->finished)
            reap(c);
        if (!c->started)
            return c;
    }
    return NULL;
}

static void *accept_clients(void *unused)
{
    (void)unused;
    while (!stopping) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        struct client *client;

        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            if (stopping || errno == EINVAL)
                break;
            /* Out of descriptors or memory: others may give some back. */
            usleep(100000);
            continue;
        }
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        client = free_client();
        if (!client) {
            reply_failed(fd, AVHDX_ERR_LOCKED, "too many control connections", "try again when one has ended");
            close(fd);
            continue;
        }
        client->fd = fd;
        client->finished = false;
        client->started = pthread_create(&client->thread, NULL, serve_client, client) == 0;
        if (!client->started)
            close(fd);
    }
    return NULL;
}

int control_start(void)
{
    if (listener < 0)
        return 0;
    running = pthread_create(&acceptor, NULL, accept_clients, NULL) == 0;
    if (!running)
        nbdkit_error("control: no thread can be started");
    return running ? 0 : -1;
}

void control_stop(void)
{
    stopping = true;
    if (running) {
        shutdown(listener, SHUT_RDWR);
        pthread_join(acceptor, NULL);
        for (struct client *c = clients; c < clients + CLIENTS; c++) {
            if (c->started) {
                shutdown(c->fd, SHUT_RD);
                reap(c);
            }
        }
        running = false;
    }
    if (listener >= 0) {
        /* While it is ours: afterwards another server may have made its own. */
        unlink(path);
        close(listener);
        listener = -1;
    }
    free(path);
    path = NULL;
}
