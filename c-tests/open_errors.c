/* What cannot be opened, and what the caller is told. */
#include "check.h"
#include <fcntl.h>
#include <sys/stat.h>

static void put(const char *name, const void *bytes, size_t len)
{
    FILE *f = fopen(in_dir(name), "w");
    CHECK(f != NULL && fwrite(bytes, 1, len, f) == len && fclose(f) == 0);
}

int main(void)
{
    check_start();
    avhdx_disk *d, *second;
    static char zeros[MIB];
    put("zeros", zeros, sizeof zeros);
    CHECK_FAILS(avhdx_open(&d, in_dir("zeros"), NULL), EMEDIUMTYPE, AVHDX_ERR_NOT_VHDX);
    CHECK(avhdx_error_hresult(avhdx_last_error()) == 0xC03A0004u);
    CHECK(avhdx_error_offset(avhdx_last_error()) == 0);
    put("short", "vhdxfile", 8);
    CHECK_FAILS(avhdx_open(&d, in_dir("short"), NULL), EUCLEAN, AVHDX_ERR_TRUNCATED);
    CHECK_FAILS(avhdx_open(&d, check_directory, NULL), EINVAL, AVHDX_ERR_IO);
    CHECK(mkfifo(in_dir("fifo"), 0600) == 0);
    CHECK_FAILS(avhdx_open(&d, in_dir("fifo"), NULL), EINVAL, AVHDX_ERR_IO);
    CHECK(d == NULL);

    make_disk("disk.vhdx", 4);
    CHECK_FAILS(avhdx_create(in_dir("disk.vhdx"), NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    avhdx_opts *o = avhdx_opts_new();
    CHECK(avhdx_opts_parse(o, "size=4M") == 0);
    CHECK_FAILS(avhdx_create(in_dir("disk.vhdx"), o), EEXIST, AVHDX_ERR_IO);

    /* One writer; readers among themselves. */
    CHECK(avhdx_open(&d, in_dir("disk.vhdx"), NULL) == 0);
    CHECK_FAILS(avhdx_open(&second, in_dir("disk.vhdx"), NULL), EAGAIN, AVHDX_ERR_LOCKED);
    CHECK(avhdx_error_hint(avhdx_last_error()) != NULL);
    CHECK(avhdx_close(d) == 0);
    CHECK(avhdx_opts_parse(o, "read-only=on") == 0);
    CHECK(avhdx_open(&d, in_dir("disk.vhdx"), o) == 0);
    CHECK(avhdx_open(&second, in_dir("disk.vhdx"), o) == 0);
    CHECK_FAILS(avhdx_pwrite(d, zeros, 512, 0, 0), EROFS, AVHDX_ERR_READ_ONLY);
    CHECK(avhdx_close(second) == 0);
    CHECK(avhdx_close(d) == 0);
    avhdx_opts_free(o);

    /* A child whose parent is gone, and one whose parent was changed. */
    CHECK(avhdx_open(&d, in_dir("disk.vhdx"), NULL) == 0);
    CHECK(avhdx_checkpoint(d, in_dir("child.avhdx"), NULL) == 0);
    CHECK(avhdx_close(d) == 0);
    CHECK(avhdx_open(&d, in_dir("disk.vhdx"), NULL) == 0);
    fill(d, 0, 512, 1);
    CHECK(avhdx_close(d) == 0);
    CHECK_FAILS(avhdx_open(&d, in_dir("child.avhdx"), NULL), ESTALE, AVHDX_ERR_PARENT_ID_MISMATCH);
    CHECK(unlink(in_dir("disk.vhdx")) == 0);
    CHECK_FAILS(avhdx_open(&d, in_dir("child.avhdx"), NULL), ENOENT, AVHDX_ERR_PARENT_NOT_FOUND);
    CHECK(strstr(avhdx_error_message(avhdx_last_error()), "disk.vhdx") != NULL);

    /* A descriptor belongs to the library also after a failure. */
    int fd = open(in_dir("zeros"), O_RDWR);
    CHECK(fd >= 0);
    CHECK_FAILS(avhdx_open_fd(&d, fd, "zeros", NULL), EMEDIUMTYPE, AVHDX_ERR_NOT_VHDX);
    CHECK(fcntl(fd, F_GETFD) == -1);
    return 0;
}
