/* What others do with the same content. For comparison, without targets; who is not installed is left out. */
#define _GNU_SOURCE
#include "bench.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#define READS 50000
/* Goes all over a disk of 1 GiB. */
#define STEP (4 * KIB * 100003)

static bool is_installed(const char *program)
{
    char line[128];
    snprintf(line, sizeof line, "command -v %s >/dev/null 2>&1", program);
    return system(line) == 0;
}

/* Seconds of READS reads of 4 KiB by qemu-img bench. */
static double qemu(const char *format, const char *path)
{
    char line[1200];
    double seconds;
    snprintf(line, sizeof line, "qemu-img bench -f %s -c %d -d 1 -s 4096 -S %llu '%s'", format, READS,
             (unsigned long long)STEP, path);
    FILE *output = popen(line, "r");
    need_sys(output != NULL, line);
    while (fscanf(output, "Run completed in %lf", &seconds) != 1)
        if (fscanf(output, "%*[^\n]") == EOF || fgetc(output) == EOF) {
            fprintf(stderr, "failed: %s\n", line);
            exit(2);
        }
    pclose(output);
    return seconds;
}

static void plain(void *arg)
{
    static char buf[4096];
    int fd = *(int *)arg;
    uint64_t at = 0;
    for (int i = 0; i < READS; i++, at = (at + STEP) % GIB)
        need_sys(pread(fd, buf, sizeof buf, (off_t)at) == sizeof buf, "pread");
}

/* libvhdi, where it is installed, with a file that it has open. */
struct vhdi {
    void *file;
    int (*initialize)(void **file, void *error);
    int (*open)(void *file, const char *path, int access, void *error);
    ssize_t (*read)(void *file, void *buf, size_t len, int64_t offset, void *error);
};

static bool vhdi_open(struct vhdi *vhdi, const char *path)
{
    void *library = dlopen("libvhdi.so.1", RTLD_NOW);
    if (!library)
        return false;
    /* POSIX has the conversion; ISO C wants it written so. */
    *(void **)&vhdi->initialize = dlsym(library, "libvhdi_file_initialize");
    *(void **)&vhdi->open = dlsym(library, "libvhdi_file_open");
    *(void **)&vhdi->read = dlsym(library, "libvhdi_file_read_buffer_at_offset");
    vhdi->file = NULL;
    /* 1: for reading. */
    return vhdi->initialize && vhdi->open && vhdi->read && vhdi->initialize(&vhdi->file, NULL) == 1 &&
           vhdi->open(vhdi->file, path, 1, NULL) == 1;
}

static void by_vhdi(void *arg)
{
    static char buf[4096];
    struct vhdi *vhdi = arg;
    uint64_t at = 0;
    for (int i = 0; i < READS; i++, at = (at + STEP) % GIB)
        need_sys(vhdi->read(vhdi->file, buf, sizeof buf, (int64_t)at, NULL) == sizeof buf, "libvhdi");
}

static void qemu_row(const char *name, const char *format, const char *path, int fd)
{
    struct row row = row_begin(name, INFORMATION, 0, "x pread");
    for (int round = 0; round <= rounds; round++) {
        double theirs = qemu(format, path), pread = timed(plain, &fd);
        if (round)
            row_add(&row, pread / theirs);
    }
    row_end(&row);
}

/* Seconds of copying all of a disk out of nbdkit. */
static double nbdcopy(const char *plugin, const char *file)
{
    double start = now();
    command("nbdkit -U - '%s' '%s' --run 'nbdcopy \"$uri\" null:'", plugin, file);
    return now() - start;
}

void bench_peers(void)
{
    const char *flat = in_work("peer.vhdx"), *raw = in_work("peer.raw"), *plugin = getenv("AVHDX_PLUGIN");
    disk_create(flat, "size=1G,block-size=2M");
    avhdx_disk *disk = disk_open(flat, "cache=unsafe");
    disk_fill(disk, 0, GIB);
    disk_to_raw(disk, raw);
    disk_close(disk);
    if (is_installed("qemu-img") && is_installed("qemu-io")) {
        int fd = open(raw, O_RDONLY | O_CLOEXEC);
        need_sys(fd >= 0, raw);
        qemu_row("qemu-img bench: random read 4 KiB, raw file", "raw", raw, fd);
        qemu_row("qemu-img bench: random read 4 KiB, VHDX without parent", "vhdx", flat, fd);
        struct random random = {3};
        command("qemu-img convert -q -O qcow2 '%s' '%s'", raw, in_work("peer-1.qcow2"));
        for (int layer = 2; layer <= 32; layer++) {
            const char *child = in_work("peer-%d.qcow2", layer), *commands = in_work("commands");
            command("qemu-img create -q -f qcow2 -F qcow2 -b peer-%d.qcow2 '%s'", layer - 1, child);
            FILE *f = fopen(commands, "w");
            need_sys(f != NULL, commands);
            for (int i = 0; i < 64; i++)
                fprintf(f, "write -P 7 %llu 64k\n",
                        (unsigned long long)(random_below(&random, GIB / (64 * KIB)) * 64 * KIB));
            fclose(f);
            command("qemu-io -f qcow2 '%s' <'%s' >/dev/null", child, commands);
            if (layer == 8 || layer == 32) {
                char name[96];
                snprintf(name, sizeof name, "qemu-img bench: random read 4 KiB, qcow2, depth %d", layer);
                qemu_row(name, "qcow2", child, fd);
            }
        }
        close(fd);
    }
    struct vhdi vhdi;
    if (vhdi_open(&vhdi, flat)) {
        int fd = open(raw, O_RDONLY | O_CLOEXEC);
        need_sys(fd >= 0, raw);
        struct row row = row_begin("libvhdi: random read 4 KiB, VHDX without parent", INFORMATION, 0, "x pread");
        for (int round = 0; round <= rounds; round++) {
            double theirs = timed(by_vhdi, &vhdi), pread = timed(plain, &fd);
            if (round)
                row_add(&row, pread / theirs);
        }
        row_end(&row);
        close(fd);
    }
    if (plugin && is_installed("nbdkit") && is_installed("nbdcopy")) {
        struct row row = row_begin("nbdcopy from nbdkit-avhdx-plugin, in units of nbdkit's file plugin on raw", INFORMATION,
                                   0, "x file");
        for (int round = 0; round <= rounds; round++) {
            double ours = nbdcopy(plugin, flat), file = nbdcopy("file", raw);
            if (round)
                row_add(&row, file / ours);
        }
        row_end(&row);
    }
    command("rm -f '%s'/peer*", work);
}
