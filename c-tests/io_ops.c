/* Files behind the caller's functions: kept in this test's memory. */
#include "check.h"

struct file {
    char name[128];
    unsigned char *bytes;
    uint64_t size;
    int used;
};

static struct file files[16];
static int open_files, fail_flush;

static struct file *find(const char *name)
{
    for (int i = 0; i < 16; i++)
        if (files[i].used && strcmp(files[i].name, name) == 0)
            return &files[i];
    return NULL;
}

static int my_open(void *ctx, const char *path, uint32_t how, void **file)
{
    CHECK(ctx == files);
    struct file *f = find(path);
    if (how == AVHDX_IO_CREATE) {
        if (f)
            return -EEXIST;
        for (f = files; f->used; f++)
            CHECK(f < files + 15);
        f->used = 1;
        snprintf(f->name, sizeof f->name, "%s", path);
    }
    if (!f)
        return -ENOENT;
    open_files++;
    *file = f;
    return 0;
}

static int my_close(void *ctx, void *file)
{
    (void)ctx, (void)file;
    open_files--;
    return 0;
}

static int my_set_size(void *ctx, void *file, uint64_t size)
{
    (void)ctx;
    struct file *f = file;
    unsigned char *bytes = realloc(f->bytes, size ? size : 1);
    if (!bytes)
        return -ENOMEM;
    if (size > f->size)
        memset(bytes + f->size, 0, size - f->size);
    f->bytes = bytes;
    f->size = size;
    return 0;
}

static int my_pread(void *ctx, void *file, void *buf, size_t count, uint64_t offset)
{
    (void)ctx;
    struct file *f = file;
    if (offset > f->size || count > f->size - offset)
        return -EIO;
    memcpy(buf, f->bytes + offset, count);
    return 0;
}

static int my_pwrite(void *ctx, void *file, const void *buf, size_t count, uint64_t offset)
{
    struct file *f = file;
    if (offset + count > f->size && my_set_size(ctx, f, offset + count) != 0)
        return -ENOMEM;
    memcpy(f->bytes + offset, buf, count);
    return 0;
}

static int my_flush(void *ctx, void *file)
{
    (void)ctx, (void)file;
    return fail_flush ? -EIO : 0;
}

static int my_size(void *ctx, void *file, uint64_t *size)
{
    (void)ctx;
    *size = ((struct file *)file)->size;
    return 0;
}

static int my_rename(void *ctx, const char *from, const char *to)
{
    (void)ctx;
    struct file *f = find(from);
    if (!f)
        return -ENOENT;
    if (find(to))
        return -EEXIST;
    snprintf(f->name, sizeof f->name, "%s", to);
    return 0;
}

static int my_unlink(void *ctx, const char *path)
{
    (void)ctx;
    struct file *f = find(path);
    if (!f)
        return -ENOENT;
    f->used = 0; /* the bytes stay for whoever has it open */
    f->name[0] = 0;
    return 0;
}

int main(void)
{
    struct avhdx_io_ops io;
    memset(&io, 0, sizeof io);
    io.struct_size = sizeof io;
    avhdx_opts *o = avhdx_opts_new();
    CHECK_FAILS(avhdx_opts_set_io(o, &io, files), EINVAL, AVHDX_ERR_ARGUMENT);
    io.open = my_open;
    io.close = my_close;
    io.pread = my_pread;
    io.pwrite = my_pwrite;
    io.flush = my_flush;
    io.get_size = my_size;
    io.set_size = my_set_size;
    CHECK(avhdx_opts_set_io(o, &io, files) == 0);
    CHECK(avhdx_opts_parse(o, "size=8M,block-size=1M") == 0);
    /* Without rename nothing can be created; the error says so. */
    CHECK_FAILS(avhdx_create("/m/base.vhdx", o), ENOTSUP, AVHDX_ERR_IO);
    io.rename = my_rename;
    io.unlink = my_unlink;
    CHECK(avhdx_opts_set_io(o, &io, files) == 0);
    for (int i = 0; i < 16; i++)
        files[i].used = 0, files[i].name[0] = 0;
    CHECK(avhdx_create("/m/base.vhdx", o) == 0);
    CHECK(open_files == 0);

    avhdx_disk *d;
    CHECK(avhdx_open(&d, "/m/base.vhdx", o) == 0);
    fill(d, 0, MIB, 1);
    CHECK(avhdx_checkpoint(d, "/m/a.avhdx", o) == 0);
    fill(d, 4096, 4096, 2);
    CHECK(avhdx_close(d) == 0);
    CHECK(open_files == 0);
    CHECK(avhdx_open(&d, "/m/a.avhdx", o) == 0);
    expect(d, 0, 4096, 1);
    expect(d, 4096, 4096, 2);
    CHECK(avhdx_layer_fd(d, 0) == -ENOTSUP);
    CHECK(avhdx_merge(d, 0, 1, o, NULL) == 0);
    CHECK(find("/m/a.avhdx") == NULL);
    expect(d, 4096, 4096, 2);
    CHECK(avhdx_close(d) == 0);

    /* The storage's own errno comes back, and the disk takes no more writes. */
    CHECK(avhdx_open(&d, "/m/base.vhdx", o) == 0);
    fill(d, 0, 512, 3);
    fail_flush = 1;
    CHECK_FAILS(avhdx_flush(d), EIO, AVHDX_ERR_IO);
    char sector[512] = {0};
    CHECK_FAILS(avhdx_pwrite(d, sector, 512, 0, 0), EIO, AVHDX_ERR_POISONED);
    CHECK(avhdx_pread(d, sector, 512, 0) == 0);
    avhdx_abort(d);
    CHECK(open_files == 0);
    avhdx_opts_free(o);
    for (int i = 0; i < 16; i++)
        free(files[i].bytes);
    return 0;
}
