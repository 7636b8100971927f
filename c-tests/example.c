#include <avhdx.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    avhdx_disk *disk;
    avhdx_opts *opts = avhdx_opts_new();
    unsigned char sector[512];
    int r = argc == 2 ? avhdx_opts_parse(opts, "read-only=on,search=/srv/parents") : -1;

    if (r == 0)
        r = avhdx_open(&disk, argv[1], opts);
    avhdx_opts_free(opts);
    if (r == 0) {
        r = avhdx_pread(disk, sector, sizeof sector, 0);
        if (r == 0)
            printf("%d layers, boot signature %02x%02x\n", avhdx_layer_count(disk), sector[510], sector[511]);
        avhdx_close(disk);
    }
    if (r < 0) {
        fprintf(stderr, "%s\n%s\n", avhdx_error_message(NULL), avhdx_error_hint(NULL));
        return 1;
    }
    return 0;
}
