/* A descriptor given to avhdx_open_fd belongs to the library: closed with the disk, and when opening fails. */
#include "check.h"

#include <fcntl.h>

static int is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

static void used_and_closed(void)
{
    avhdx_disk *disk;
    unsigned char buf[512];
    int fd;

    NEED(create(tmp("d.vhdx"), "size=16M,block-size=1M") == 0);
    NEED((fd = open(tmp("d.vhdx"), O_RDWR)) >= 0);
    CHECK_OK(avhdx_open_fd(&disk, fd, tmp("d.vhdx"), NULL));
    CHECK(is_open(fd));
    CHECK_INT(fcntl(fd, F_GETFD), FD_CLOEXEC);
    fill(buf, sizeof buf, 1);
    CHECK_OK(avhdx_pwrite(disk, buf, sizeof buf, 4096, 0));
    CHECK_OK(avhdx_close(disk));
    CHECK(!is_open(fd));
}

static void parents_by_name(void)
{
    avhdx_disk *disk;
    char line[300];
    int fd;

    snprintf(line, sizeof line, "type=differencing,parent=%s", tmp("d.vhdx"));
    NEED(create(tmp("c.avhdx"), line) == 0);
    NEED((fd = open(tmp("c.avhdx"), O_RDWR)) >= 0);
    CHECK_OK(avhdx_open_fd(&disk, fd, tmp("c.avhdx"), NULL));
    CHECK_INT(avhdx_layer_count(disk), 2);
    CHECK_OK(avhdx_close(disk));
}

static void refused_and_closed(void)
{
    avhdx_disk *disk;
    avhdx_opts *o = opts("read-only");
    int fd, pipes[2];

    NEED((fd = open(tmp("d.vhdx"), O_RDONLY)) >= 0);
    CHECK_FAILS(avhdx_open_fd(&disk, fd, tmp("d.vhdx"), NULL), EROFS, AVHDX_ERR_READ_ONLY);
    CHECK_HAS(avhdx_error_hint(NULL), "read-only");
    CHECK(!is_open(fd) && disk == NULL);
    NEED((fd = open(tmp("d.vhdx"), O_RDONLY)) >= 0);
    CHECK_OK(avhdx_open_fd(&disk, fd, tmp("d.vhdx"), o));
    CHECK_OK(avhdx_close(disk));
    NEED((fd = open(tmp("d.vhdx"), O_WRONLY)) >= 0);
    CHECK_FAILS(avhdx_open_fd(&disk, fd, tmp("d.vhdx"), NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK(!is_open(fd));
    NEED((fd = open(tmp("d.vhdx"), O_RDWR)) >= 0);
    CHECK_FAILS(avhdx_open_fd(&disk, fd, NULL, NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK(!is_open(fd));
    NEED((fd = open(tmp("d.vhdx"), O_RDWR)) >= 0);
    CHECK_FAILS(avhdx_open_fd(NULL, fd, tmp("d.vhdx"), NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK(!is_open(fd));
    NEED(pipe(pipes) == 0);
    CHECK(avhdx_open_fd(&disk, pipes[0], tmp("d.vhdx"), o) < 0);
    CHECK(!is_open(pipes[0]));
    close(pipes[1]);
    CHECK_FAILS(avhdx_open_fd(&disk, -1, tmp("d.vhdx"), NULL), EINVAL, AVHDX_ERR_ARGUMENT);
    CHECK_INT(avhdx_open_fd(&disk, 1000000, tmp("d.vhdx"), NULL), -EBADF);
    CHECK(disk == NULL);
    avhdx_opts_free(o);
}

int main(void)
{
    RUN(used_and_closed);
    RUN(parents_by_name);
    RUN(refused_and_closed);
    return check_end();
}
