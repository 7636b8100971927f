/* The library can be loaded, used and unloaded again, more than once, and leaves the process as it was. */
#include <avhdx.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    int round;

    if (argc != 2) {
        fprintf(stderr, "usage: %s libavhdx.so\n", argv[0]);
        return 2;
    }
    for (round = 0; round < 3; round++) {
        void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
        const char *(*version)(void);
        int (*open_disk)(avhdx_disk **, const char *, const avhdx_opts *);
        avhdx_disk *disk;

        if (!library) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
        *(void **)&version = dlsym(library, "avhdx_version");
        *(void **)&open_disk = dlsym(library, "avhdx_open");
        if (!version || !open_disk || strncmp(version(), "1.", 2) != 0 || open_disk(&disk, "/nonexistent", NULL) >= 0) {
            fprintf(stderr, "round %d failed\n", round);
            return 1;
        }
        dlclose(library);
    }
    printf("%d passed, 0 failed\n", round);
    return 0;
}
