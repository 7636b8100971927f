/* Opens a chain whose files are in several places, through functions of the program's own: a layer named by an NBD URI
 * is a file on another server, all others are files of this host. Writes what the disk holds to standard output.
 *
 *     remote-layer LAYER...               the layers of the chain, leaf first, base last
 *
 * For example, where the base is on a server that runs `nbdkit --readonly file base.vhdx`:
 *
 *     remote-layer b.avhdx a.avhdx nbd://server >disk.raw
 *
 * These functions are for reading. Writing wants pwrite, flush and set_size too; checkpoints and merges create, rename,
 * unlink, sync_dir and list. Nor is there a lock: that nobody writes to the files meanwhile is up to whoever runs this.
 * A program that does not know all layers takes avhdx_open and tells the places with avhdx_opts_set_resolver.
 *
 * Build with: cc -o remote-layer remote-layer.c -pthread $(pkg-config --cflags --libs avhdx libnbd)
 */
#define _GNU_SOURCE
#include <avhdx.h>
#include <errno.h>
#include <fcntl.h>
#include <libnbd.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LAYERS_MAX 16
#define THREADS 4
#define CONNECTIONS 4
#define PIECE ((size_t)4 << 20)
#define REQUEST_MAX (UINT64_C(32) << 20) /* a server may disconnect whoever asks for more at once */

/* An open file. pread is called by many threads at once. A libnbd handle stands that: each call locks it, until the
 * server has answered, so that on one handle threads take turns. Hence some connections, used in rotation; where two
 * threads meet on one, the second waits. A handle that lost its server stays so: a program that is to outlive that
 * needs a lock of its own around making a new one. */
struct file {
    int fd; /* -1: remote */
    int64_t size; /* it is asked for with every read: kept */
    uint64_t request_max;
    struct nbd_handle *nbd[CONNECTIONS];
    atomic_uint turn;
};

/* The errno for the library, which keeps that alone: the words are told here. Both are this thread's own. */
static int nbd_failure(const char *what)
{
    int err = nbd_get_errno(); /* 0 where libnbd knows none */

    fprintf(stderr, "remote-layer: %s: %s\n", what, nbd_get_error());
    return err > 0 ? -err : -EIO;
}

static void io_close(void *ctx, void *opaque)
{
    struct file *file = opaque;

    (void)ctx;
    if (file->fd >= 0)
        close(file->fd);
    for (size_t i = 0; i < CONNECTIONS; i++)
        nbd_close(file->nbd[i]); /* NULL is allowed */
    free(file);
}

static int open_local(struct file *file, const char *path)
{
    struct stat st;

    file->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (file->fd < 0 || fstat(file->fd, &st) < 0)
        return -errno;
    file->size = st.st_size;
    return S_ISREG(st.st_mode) ? 0 : -EINVAL;
}

/* What it opened before it failed, io_close() closes. */
static int open_remote(struct file *file, const char *uri)
{
    int64_t max;

    for (size_t i = 0; i < CONNECTIONS; i++) {
        file->nbd[i] = nbd_create();
        if (!file->nbd[i] || nbd_connect_uri(file->nbd[i], uri) < 0)
            return nbd_failure(uri);
    }
    file->size = nbd_get_size(file->nbd[0]);
    max = nbd_get_block_size(file->nbd[0], LIBNBD_SIZE_MAXIMUM); /* 0: not told */
    if (file->size < 0 || max < 0)
        return nbd_failure(uri);
    file->request_max = max > 0 && (uint64_t)max < REQUEST_MAX ? (uint64_t)max : REQUEST_MAX;
    /* The library reads at any offset. For a server of whole sectors a buffer is needed in between. */
    return nbd_get_block_size(file->nbd[0], LIBNBD_SIZE_MINIMUM) > 1 ? -ENOTSUP : 0;
}

/* ctx: the layers as main() got them. To the library names are absolute paths, and it takes "//" and ".." out of them,
 * which a URI does not survive. So a remote layer goes by its number: "/nbd:1". */
static int io_open(void *ctx, const char *path, uint32_t flags, void **opened)
{
    char **layers = ctx;
    struct file *file;
    int r;

    if (flags & AVHDX_IO_WRITE)
        return -EROFS;
    file = calloc(1, sizeof *file);
    if (!file)
        return -ENOMEM;
    file->fd = -1;
    atomic_init(&file->turn, 0);
    if (strncmp(path, "/nbd:", 5) == 0)
        r = open_remote(file, layers[strtoul(path + 5, NULL, 10)]);
    else
        r = open_local(file, path);
    if (r < 0)
        io_close(ctx, file);
    else
        *opened = file;
    return r;
}

/* The whole range, or a negative errno. */
static int io_pread(void *ctx, void *opaque, void *buf, size_t count, uint64_t offset)
{
    struct file *file = opaque;
    struct nbd_handle *nbd = NULL;
    unsigned char *to = buf;
    int r = 0;

    (void)ctx;
    if (file->fd < 0)
        nbd = file->nbd[atomic_fetch_add(&file->turn, 1) % CONNECTIONS];
    while (r == 0 && count > 0) {
        size_t done = count;

        if (nbd) {
            if (done > file->request_max)
                done = (size_t)file->request_max;
            if (nbd_pread(nbd, to, done, offset, 0) < 0)
                r = nbd_failure("reading");
        } else {
            ssize_t got = pread(file->fd, to, done, (off_t)offset);

            if (got == 0)
                r = -EIO; /* the file was cut: the library asks for nothing past the size */
            if (got < 0 && errno != EINTR)
                r = -errno;
            done = got > 0 ? (size_t)got : 0;
        }
        to += done;
        offset += done;
        count -= done;
    }
    return r;
}

static int64_t io_get_size(void *ctx, void *opaque)
{
    (void)ctx;
    return ((struct file *)opaque)->size;
}

static int complain(void)
{
    const char *cause = avhdx_error_cause(NULL), *hint = avhdx_error_hint(NULL);

    fprintf(stderr, "remote-layer: %s%s%s\n", avhdx_error_message(NULL), *cause ? ": " : "", cause);
    if (*hint)
        fprintf(stderr, "remote-layer: %s\n", hint);
    return -1;
}

struct piece {
    pthread_t thread;
    avhdx_disk *disk;
    unsigned char *buf;
    size_t count;
    uint64_t offset;
    int result;
};

static void *read_piece(void *user)
{
    struct piece *p = user;

    p->result = avhdx_pread(p->disk, p->buf, p->count, p->offset);
    if (p->result < 0)
        complain(); /* here: avhdx_last_error() is the thread's own; avhdx_error_dup makes it another's */
    return NULL;
}

/* Reads THREADS pieces at once, then writes them. */
static int copy_disk(avhdx_disk *disk, FILE *out)
{
    unsigned char *buf = malloc(THREADS * PIECE);
    int64_t size = avhdx_get_size(disk);
    uint64_t at = 0;
    int r = size < 0 ? complain() : buf ? 0 : -1;

    while (r == 0 && at < (uint64_t)size) {
        struct piece pieces[THREADS];
        size_t total = 0;
        int n = 0;

        for (; n < THREADS && at < (uint64_t)size; n++) {
            size_t count = (uint64_t)size - at < PIECE ? (size_t)((uint64_t)size - at) : PIECE;

            pieces[n] = (struct piece){ .disk = disk, .buf = buf + total, .count = count, .offset = at };
            if (pthread_create(&pieces[n].thread, NULL, read_piece, &pieces[n]) != 0) {
                fprintf(stderr, "remote-layer: cannot start a thread\n");
                r = -1;
                break;
            }
            total += count;
            at += count;
        }
        while (n-- > 0) {
            pthread_join(pieces[n].thread, NULL);
            if (pieces[n].result < 0)
                r = -1;
        }
        if (r == 0 && fwrite(buf, total, 1, out) != 1)
            r = -1;
    }
    if (fflush(out) != 0 || ferror(out)) {
        perror("remote-layer: standard output");
        r = -1;
    }
    free(buf);
    return r;
}

int main(int argc, char **argv)
{
    static char paths[LAYERS_MAX][PATH_MAX];
    const char *names[LAYERS_MAX];
    struct avhdx_io_ops ops = AVHDX_IO_OPS_INIT; /* what is not set below stays NULL */
    avhdx_opts *opts;
    avhdx_disk *disk;
    int count = argc - 1, r;

    if (count < 1 || count > LAYERS_MAX) {
        fprintf(stderr, "usage: remote-layer LAYER...\n");
        return 2;
    }
    for (int i = 0; i < count; i++) {
        names[i] = paths[i];
        if (strncmp(argv[i + 1], "nbd", 3) == 0) {
            snprintf(paths[i], sizeof paths[i], "/nbd:%d", i); /* see io_open() */
        } else if (!realpath(argv[i + 1], paths[i])) { /* the library would take a relative path to be in "/" */
            perror(argv[i + 1]);
            return 1;
        }
    }

    ops.open = io_open;
    ops.close = io_close;
    ops.pread = io_pread;
    ops.get_size = io_get_size;
    opts = avhdx_opts_new();
    r = avhdx_opts_set_bool(opts, "read-only", 1);
    if (r == 0)
        r = avhdx_opts_set_io(opts, &ops, argv + 1);
    if (r == 0)
        r = avhdx_open_chain(&disk, names, (size_t)count, opts);
    avhdx_opts_free(opts);
    if (r < 0) {
        complain();
        return 1;
    }
    r = copy_disk(disk, stdout);
    if (avhdx_close(disk) < 0)
        r = complain();
    return r < 0 ? 1 : 0;
}
