/* A chain in the test's own memory, through the I/O callbacks: create, open, write, checkpoint, merge, reopen. Missing and
 * failing callbacks become clear errors; what was opened is closed; ctx is freed once. */
#include "check.h"

#include <pthread.h>

struct file {
    char name[128];
    unsigned char *bytes;
    uint64_t size, room;
    unsigned users;
    int removed;
};

struct store {
    pthread_mutex_t lock;
    struct file files[16];
    unsigned opened, closed, freed, flushes, fail_after;
    int fail_errno;
};

static int failing(struct store *s)
{
    if (s->fail_after && --s->fail_after == 0) {
        s->fail_after = 1;
        return s->fail_errno;
    }
    return 0;
}

static struct file *find(struct store *s, const char *name)
{
    size_t i;
    for (i = 0; i < 16; i++)
        if (!s->files[i].removed && strcmp(s->files[i].name, name) == 0)
            return &s->files[i];
    return NULL;
}

static int s_open(void *ctx, const char *path, uint32_t flags, void **file)
{
    struct store *s = ctx;
    struct file *f;

    CHECK(path[0] == '/' && !strstr(path, "/./") && !strstr(path, ".."));
    CHECK((flags & ~(uint32_t)AVHDX_IO_WRITE) == 0);
    pthread_mutex_lock(&s->lock);
    f = find(s, path);
    if (f) {
        f->users++;
        s->opened++;
        *file = f;
    }
    pthread_mutex_unlock(&s->lock);
    return f ? 0 : -ENOENT;
}

static void s_close(void *ctx, void *file)
{
    struct store *s = ctx;
    pthread_mutex_lock(&s->lock);
    ((struct file *)file)->users--;
    s->closed++;
    pthread_mutex_unlock(&s->lock);
}

static int s_pread(void *ctx, void *file, void *buf, size_t count, uint64_t offset)
{
    struct store *s = ctx;
    struct file *f = file;
    int r;

    pthread_mutex_lock(&s->lock);
    r = failing(s);
    CHECK(offset + count <= f->size);
    if (!r)
        memcpy(buf, f->bytes + offset, count);
    pthread_mutex_unlock(&s->lock);
    return r;
}

static void room(struct file *f, uint64_t size)
{
    if (size > f->room) {
        uint64_t more = size * 2;
        NEED((f->bytes = realloc(f->bytes, more)) != NULL);
        memset(f->bytes + f->room, 0, more - f->room);
        f->room = more;
    }
}

static int s_pwrite(void *ctx, void *file, const void *buf, size_t count, uint64_t offset)
{
    struct store *s = ctx;
    struct file *f = file;
    int r;

    pthread_mutex_lock(&s->lock);
    r = failing(s);
    if (!r) {
        room(f, offset + count);
        memcpy(f->bytes + offset, buf, count);
        if (offset + count > f->size)
            f->size = offset + count;
    }
    pthread_mutex_unlock(&s->lock);
    return r;
}

static int s_flush(void *ctx, void *file)
{
    struct store *s = ctx;
    (void)file;
    s->flushes++;
    return failing(s);
}

static int64_t s_get_size(void *ctx, void *file)
{
    struct store *s = ctx;
    int64_t size;
    pthread_mutex_lock(&s->lock);
    size = (int64_t)((struct file *)file)->size;
    pthread_mutex_unlock(&s->lock);
    return size;
}

static int s_set_size(void *ctx, void *file, uint64_t size)
{
    struct store *s = ctx;
    struct file *f = file;

    pthread_mutex_lock(&s->lock);
    room(f, size);
    if (size < f->size)
        memset(f->bytes + size, 0, f->size - size);
    f->size = size;
    pthread_mutex_unlock(&s->lock);
    return 0;
}

static int s_create(void *ctx, const char *path, void **file)
{
    struct store *s = ctx;
    size_t i;
    int r = -ENOSPC;

    pthread_mutex_lock(&s->lock);
    if (find(s, path)) {
        r = -EEXIST;
    } else {
        for (i = 0; i < 16; i++) {
            if (s->files[i].name[0] == 0) {
                snprintf(s->files[i].name, sizeof s->files[i].name, "%s", path);
                s->files[i].users = 1;
                s->opened++;
                *file = &s->files[i];
                r = 0;
                break;
            }
        }
    }
    pthread_mutex_unlock(&s->lock);
    return r;
}

static int s_rename(void *ctx, const char *from, const char *to)
{
    struct store *s = ctx;
    struct file *f;

    if (find(s, to))
        return -EEXIST;
    f = find(s, from);
    if (!f)
        return -ENOENT;
    snprintf(f->name, sizeof f->name, "%s", to);
    return 0;
}

static int s_unlink(void *ctx, const char *path)
{
    struct file *f = find(ctx, path);
    if (!f)
        return -ENOENT;
    f->removed = 1;
    return 0;
}

static int s_sync_dir(void *ctx, const char *dir)
{
    (void)ctx;
    CHECK(dir[0] == '/');
    return 0;
}

static int s_list(void *ctx, const char *dir, int (*found)(void *, const char *), void *arg)
{
    struct store *s = ctx;
    size_t i, len = strlen(dir);

    for (i = 0; i < 16; i++) {
        const struct file *f = &s->files[i];
        const char *name = f->name + (dir[len - 1] == '/' ? len : len + 1);
        if (f->name[0] && !f->removed && strncmp(f->name, dir, len) == 0 && !strchr(name, '/') && found(arg, name))
            break;
    }
    return 0;
}

static void s_free(void *ctx)
{
    ((struct store *)ctx)->freed++;
}

static struct avhdx_io_ops table(void)
{
    struct avhdx_io_ops ops = AVHDX_IO_OPS_INIT;

    ops.free = s_free;
    ops.open = s_open;
    ops.close = s_close;
    ops.pread = s_pread;
    ops.pwrite = s_pwrite;
    ops.flush = s_flush;
    ops.get_size = s_get_size;
    ops.set_size = s_set_size;
    ops.create = s_create;
    ops.rename = s_rename;
    ops.unlink = s_unlink;
    ops.sync_dir = s_sync_dir;
    ops.list = s_list;
    return ops;
}

static struct store *new_store(void)
{
    struct store *s = calloc(1, sizeof *s);
    NEED(s != NULL);
    pthread_mutex_init(&s->lock, NULL);
    return s;
}

static void drop_store(struct store *s)
{
    size_t i;

    CHECK_INT(s->opened, s->closed);
    for (i = 0; i < 16; i++)
        free(s->files[i].bytes);
    free(s);
}

static void io_create(avhdx_opts *o, const char *path)
{
    NEED(avhdx_opts_parse(o, "size=8M,block-size=1M") == 0);
    NEED(avhdx_create(path, o) == 0);
}

static avhdx_opts *with_io(struct store *s, const struct avhdx_io_ops *ops)
{
    avhdx_opts *o = avhdx_opts_new();
    NEED(avhdx_opts_set_io(o, ops, s) == 0);
    return o;
}

static void whole_life(void)
{
    static unsigned char model[8 << 20], buf[8 << 20];
    struct avhdx_io_ops ops = table();
    struct store *s = new_store();
    avhdx_opts *c = with_io(s, &ops), *o = with_io(s, &ops);
    avhdx_disk *disk;

    io_create(c, "base.vhdx");
    avhdx_opts_free(c);
    CHECK_INT(s->freed, 1);
    CHECK_OK(avhdx_open(&disk, "base.vhdx", o));
    CHECK_INT(avhdx_get_size(disk), 8 * MIB);
    fill(model, 3 * MIB, 1);
    CHECK_OK(avhdx_pwrite(disk, model, 3 * MIB, 0, 0));
    CHECK_OK(avhdx_checkpoint(disk, "/a.avhdx", NULL));
    fill(model + MIB + 5, 100000, 2);
    CHECK_OK(avhdx_pwrite(disk, model + MIB + 5, 100000, MIB + 5, 0));
    s->flushes = 0;
    CHECK_OK(avhdx_flush(disk));
    CHECK(s->flushes > 0);
    CHECK_FAILS(avhdx_layer_fd(disk, 0), ENOTSUP, AVHDX_ERR_UNSUPPORTED);
    CHECK_OK(avhdx_close(disk));
    CHECK_INT(s->opened, s->closed);

    CHECK_OK(avhdx_open(&disk, "a.avhdx", o));
    CHECK_INT(avhdx_layer_count(disk), 2);
    CHECK_OK(avhdx_pread(disk, buf, sizeof buf, 0));
    CHECK(memcmp(buf, model, sizeof buf) == 0);
    CHECK_OK(avhdx_merge(disk, 0, 1, NULL, NULL));
    CHECK(find(s, "/a.avhdx") == NULL);
    CHECK_OK(avhdx_pread(disk, buf, sizeof buf, 0));
    CHECK(memcmp(buf, model, sizeof buf) == 0);
    avhdx_opts_free(o);
    CHECK_INT(s->freed, 1);
    CHECK_OK(avhdx_close(disk));
    CHECK_INT(s->freed, 2);
    drop_store(s);
}

static void missing_callbacks(void)
{
    struct avhdx_io_ops ops = table();
    struct store *s = new_store();
    avhdx_opts *c = with_io(s, &ops), *o;
    avhdx_disk *disk;

    io_create(c, "/d.vhdx");
    avhdx_opts_free(c);

    ops.create = NULL;
    o = with_io(s, &ops);
    CHECK_FAILS(avhdx_create("/e.vhdx", o), ENOTSUP, AVHDX_ERR_UNSUPPORTED);
    CHECK_HAS(avhdx_error_message(NULL), "create");
    CHECK_OK(avhdx_open(&disk, "/d.vhdx", o));
    CHECK_FAILS(avhdx_checkpoint(disk, "/c.avhdx", NULL), ENOTSUP, AVHDX_ERR_UNSUPPORTED);
    CHECK_INT(avhdx_layer_count(disk), 1);
    CHECK_OK(avhdx_close(disk));
    avhdx_opts_free(o);

    /* For reading the functions that write are not needed. */
    ops.pwrite = NULL;
    ops.flush = NULL;
    ops.set_size = NULL;
    o = with_io(s, &ops);
    CHECK_FAILS(avhdx_open(&disk, "/d.vhdx", o), EROFS, AVHDX_ERR_IO);
    CHECK_HAS(avhdx_error_hint(NULL), "read-only");
    CHECK_OK(avhdx_opts_set_bool(o, "read-only", 1));
    CHECK_OK(avhdx_open(&disk, "/d.vhdx", o));
    CHECK_OK(avhdx_close(disk));
    avhdx_opts_free(o);
    CHECK_INT(s->freed, 3);
    drop_store(s);
}

static void unusable_tables(void)
{
    struct avhdx_io_ops ops = table();
    struct store *s = new_store();
    avhdx_opts *o = avhdx_opts_new();
    struct {
        struct avhdx_io_ops ops;
        void *newer;
    } longer;

    ops.pread = NULL;
    CHECK_FAILS(avhdx_opts_set_io(o, &ops, s), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_HAS(avhdx_error_message(NULL), "'ops->pread' is NULL");
    CHECK_INT(s->freed, 1);
    ops = table();
    ops.flags = 4;
    CHECK_FAILS(avhdx_opts_set_io(o, &ops, s), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_INT(s->freed, 2);
    ops.flags = 0;
    ops.struct_size = 0;
    CHECK_FAILS(avhdx_opts_set_io(o, &ops, s), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_INT(s->freed, 2); /* too small to have a free */
    ops = table();
    CHECK_FAILS(avhdx_opts_set_io(NULL, &ops, s), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_INT(s->freed, 3);

    /* A newer caller: what it does not use is no matter, what it does is. */
    longer.ops = table();
    longer.ops.struct_size = sizeof longer;
    longer.newer = NULL;
    CHECK_OK(avhdx_opts_set_io(o, &longer.ops, s));
    longer.newer = s;
    CHECK_FAILS(avhdx_opts_set_io(o, &longer.ops, s), ENOTSUP, AVHDX_ERR_UNSUPPORTED);
    CHECK_INT(s->freed, 4);
    CHECK_OK(avhdx_opts_set_io(o, NULL, NULL));
    CHECK_INT(s->freed, 5);
    avhdx_opts_free(o);
    CHECK_INT(s->freed, 5);
    drop_store(s);
}

static void errno_of_a_callback_arrives(void)
{
    struct avhdx_io_ops ops = table();
    struct store *s = new_store();
    avhdx_opts *c = with_io(s, &ops), *o = with_io(s, &ops);
    unsigned char buf[4096] = { 1 };
    avhdx_disk *disk;

    io_create(c, "/d.vhdx");
    avhdx_opts_free(c);
    CHECK_FAILS(avhdx_open(&disk, "/none", o), ENOENT, AVHDX_ERR_IO);
    CHECK_OK(avhdx_open(&disk, "/d.vhdx", o));
    CHECK_OK(avhdx_pwrite(disk, buf, sizeof buf, 0, AVHDX_FUA));
    s->fail_errno = -EREMOTEIO;
    s->fail_after = 1;
    CHECK_FAILS(avhdx_pread(disk, buf, sizeof buf, 0), EREMOTEIO, AVHDX_ERR_IO);
    CHECK_HAS(avhdx_error_message(NULL), "d.vhdx");
    /* A positive result is no errno. */
    s->fail_errno = 4096;
    CHECK_FAILS(avhdx_pread(disk, buf, sizeof buf, 0), EIO, AVHDX_ERR_IO);
    s->fail_after = 0;
    CHECK_OK(avhdx_pread(disk, buf, sizeof buf, 0));
    CHECK_INT(buf[0], 1);
    CHECK_OK(avhdx_close(disk));
    avhdx_opts_free(o);
    drop_store(s);
}

static void every_failing_write_is_survived(void)
{
    struct avhdx_io_ops ops = table();
    unsigned n;

    for (n = 1; n < 40; n += 3) {
        struct store *s = new_store();
        avhdx_opts *c = with_io(s, &ops), *o = with_io(s, &ops);
        static unsigned char first[65536], second[65536], buf[65536];
        avhdx_disk *disk;

        memset(first, 0x55, sizeof first);
        memset(second, 0x66, sizeof second);
        io_create(c, "/d.vhdx");
        avhdx_opts_free(c);
        NEED(avhdx_open(&disk, "/d.vhdx", o) == 0);
        NEED(avhdx_pwrite(disk, first, sizeof first, MIB, 0) == 0 && avhdx_flush(disk) == 0);
        s->fail_errno = -EIO;
        s->fail_after = n;
        avhdx_pwrite(disk, second, sizeof second, 3 * MIB, 0);
        avhdx_flush(disk);
        avhdx_close(disk);
        s->fail_after = 0;
        CHECK_OK(avhdx_open(&disk, "/d.vhdx", o));
        if (disk) {
            CHECK_OK(avhdx_pread(disk, buf, sizeof buf, MIB));
            CHECK(memcmp(buf, first, sizeof buf) == 0);
            CHECK_OK(avhdx_close(disk));
        }
        avhdx_opts_free(o);
        CHECK_INT(s->freed, 2);
        drop_store(s);
    }
}

int main(void)
{
    RUN(whole_life);
    RUN(missing_callbacks);
    RUN(unusable_tables);
    RUN(errno_of_a_callback_arrives);
    RUN(every_failing_write_is_survived);
    return check_end();
}
