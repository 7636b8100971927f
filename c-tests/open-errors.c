/* What cannot be opened is refused with the right code, errno, path and hint, the handle is NULL, and the files are as
 * they were. */
#include "check.h"

#include <fcntl.h>

static void no_such_file(void)
{
    avhdx_disk *disk = (avhdx_disk *)1;

    CHECK_FAILS(avhdx_open(&disk, tmp("none.vhdx"), NULL), ENOENT, AVHDX_ERR_IO);
    CHECK(disk == NULL);
    CHECK_STR(avhdx_error_path(NULL), tmp("none.vhdx"));
    CHECK(avhdx_error_hint(NULL)[0] != 0);
}

static void write_file(const char *path, const void *bytes, size_t len)
{
    FILE *f = fopen(path, "wb");
    NEED(f && fwrite(bytes, 1, len, f) == len && fclose(f) == 0);
}

static void not_a_vhdx(void)
{
    static unsigned char bytes[1 << 20];
    struct avhdx_probe probe = AVHDX_PROBE_INIT;
    avhdx_disk *disk;

    fill(bytes, sizeof bytes, 1);
    write_file(tmp("noise"), bytes, sizeof bytes);
    CHECK_FAILS(avhdx_open(&disk, tmp("noise"), NULL), EMEDIUMTYPE, AVHDX_ERR_NOT_VHDX);
    CHECK_INT(avhdx_error_hresult(NULL), 0xC03A0004);
    CHECK_FAILS(avhdx_probe(tmp("noise"), &probe), EMEDIUMTYPE, AVHDX_ERR_NOT_VHDX);
    CHECK_INT(probe.struct_size, sizeof probe);
    CHECK_INT(probe.virtual_size, 0);
}

static void damaged(void)
{
    static unsigned char bytes[1 << 16];
    avhdx_disk *disk;
    FILE *f;

    NEED(create(tmp("bad.vhdx"), "size=16M,block-size=1M") == 0);
    f = fopen(tmp("bad.vhdx"), "r+b");
    NEED(f && fseek(f, 64 << 10, SEEK_SET) == 0);
    /* Both headers. */
    NEED(fwrite(bytes, 1, sizeof bytes, f) == sizeof bytes && fwrite(bytes, 1, sizeof bytes, f) == sizeof bytes);
    NEED(fclose(f) == 0);
    CHECK(avhdx_open(&disk, tmp("bad.vhdx"), NULL) < 0);
    CHECK(disk == NULL);
    CHECK(avhdx_error_code(NULL) == AVHDX_ERR_CORRUPT || avhdx_error_code(NULL) == AVHDX_ERR_CHECKSUM);
    CHECK(avhdx_error_offset(NULL) >= 0);
    CHECK_HAS(avhdx_error_cause(NULL), "wanted");
}

static void locked(void)
{
    avhdx_disk *first, *second;

    NEED(create(tmp("lock.vhdx"), "size=16M,block-size=1M") == 0);
    NEED((first = open_with(tmp("lock.vhdx"), "")) != NULL);
    CHECK_FAILS(avhdx_open(&second, tmp("lock.vhdx"), NULL), EAGAIN, AVHDX_ERR_LOCKED);
    CHECK(second == NULL);
    CHECK(open_with(tmp("lock.vhdx"), "lock-timeout-ms=30,read-only") == NULL);
    CHECK_INT(avhdx_error_code(NULL), AVHDX_ERR_LOCKED);
    CHECK_OK(avhdx_close(first));
    CHECK((first = open_with(tmp("lock.vhdx"), "read-only")) != NULL);
    CHECK((second = open_with(tmp("lock.vhdx"), "read-only")) != NULL);
    CHECK_OK(avhdx_close(second));
    CHECK_OK(avhdx_close(first));
}

static void parent_missing_and_changed(void)
{
    unsigned char byte = 1;
    avhdx_disk *disk;
    char line[600];

    NEED(create(tmp("base.vhdx"), "size=16M,block-size=1M") == 0);
    snprintf(line, sizeof line, "type=differencing,parent=%s", tmp("base.vhdx"));
    NEED(create(tmp("child.avhdx"), line) == 0);

    NEED(rename(tmp("base.vhdx"), tmp("hidden")) == 0);
    NEED(mkdir(tmp("elsewhere"), 0700) == 0 && rename(tmp("hidden"), tmp("elsewhere/other-name.vhdx")) == 0);
    CHECK_FAILS(avhdx_open(&disk, tmp("child.avhdx"), NULL), ENOENT, AVHDX_ERR_PARENT_NOT_FOUND);
    CHECK_HAS(avhdx_error_message(NULL), "base.vhdx");
    CHECK_HAS(avhdx_error_hint(NULL), "search");
    CHECK_INT(avhdx_error_layer(NULL), 0);

    /* Found by identity, whatever its name. */
    snprintf(line, sizeof line, "search=%s", tmp("elsewhere"));
    NEED((disk = open_with(tmp("child.avhdx"), line)) != NULL);
    CHECK_INT(avhdx_layer_count(disk), 2);
    CHECK_OK(avhdx_close(disk));

    /* A parent that was written to is no longer the parent. */
    NEED((disk = open_with(tmp("elsewhere/other-name.vhdx"), "")) != NULL);
    CHECK_OK(avhdx_pwrite(disk, &byte, 1, 0, 0));
    CHECK_OK(avhdx_close(disk));
    NEED(rename(tmp("elsewhere/other-name.vhdx"), tmp("base.vhdx")) == 0);
    CHECK_FAILS(avhdx_open(&disk, tmp("child.avhdx"), NULL), ESTALE, AVHDX_ERR_PARENT_ID_MISMATCH);
    CHECK_INT(avhdx_error_hresult(NULL), 0xC03A000E);

    /* Except when the caller says that it knows better, and lists the files. */
    {
        const char *paths[2];
        avhdx_opts *o = opts("ignore-id-mismatch");
        paths[0] = tmp("child.avhdx");
        paths[1] = tmp("base.vhdx");
        CHECK_FAILS(avhdx_open(&disk, paths[0], o), EINVAL, AVHDX_ERR_ARGUMENT);
        CHECK_FAILS(avhdx_open_chain(&disk, paths, 2, NULL), ESTALE, AVHDX_ERR_PARENT_ID_MISMATCH);
        CHECK_OK(avhdx_open_chain(&disk, paths, 2, o));
        CHECK_INT(avhdx_layer_count(disk), 2);
        CHECK_OK(avhdx_close(disk));
        avhdx_opts_free(o);
    }
    NEED((disk = open_with(tmp("child.avhdx"), "parents=off")) != NULL);
    CHECK_FAILS(avhdx_pwrite(disk, &byte, 1, 0, 0), EROFS, AVHDX_ERR_READ_ONLY);
    CHECK_OK(avhdx_close(disk));
}

static void not_a_file(void)
{
    avhdx_disk *disk;

    CHECK_FAILS(avhdx_open(&disk, "/dev/null", NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    NEED(mkfifo(tmp("fifo"), 0600) == 0);
    CHECK_FAILS(avhdx_open(&disk, tmp("fifo"), NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_FAILS(avhdx_open(&disk, "/tmp", NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK(disk == NULL);
}

int main(void)
{
    RUN(no_such_file);
    RUN(not_a_vhdx);
    RUN(damaged);
    RUN(locked);
    RUN(parent_missing_and_changed);
    RUN(not_a_file);
    return check_end();
}
