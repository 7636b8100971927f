/* What is served: which files are exports, and one open disk for all connections to the same export. */
#ifndef AVHDX_NBDKIT_EXPORTS_H
#define AVHDX_NBDKIT_EXPORTS_H

#include <avhdx.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

/* An open disk, shared. */
struct export;
struct disk {
    avhdx_disk *handle;
    struct export *export;
    unsigned long layer; /* 0: the leaf */
    char *path;
    bool readonly;
    unsigned users;
    pthread_mutex_t changing; /* held while its layers change, so that their numbers mean what they meant */
    struct disk *next;
};

/* Why a function here failed: said to nbdkit with errno, and kept for the thread. */
struct failure {
    int code; /* AVHDX_ERR_... */
    char message[2048];
    char hint[1024];
};
const struct failure *exports_failure(void);
/* Says why a wish is refused; returns -1. */
int exports_refuse(const char *message, const char *hint);

/* Configuration, before anything is open. Each returns 0, or -1. */
int exports_set_file(const char *path);
int exports_set_dir(const char *path);
int exports_set_layer(const char *number);
/* Any option of avhdx_open. */
int exports_set_option(const char *key, const char *value);
/* Checks that the configuration makes sense and that what it names can be opened. */
int exports_validate(void);
void exports_free(void);

/* What "" stands for; NULL if the client must choose. Valid until exports_free. */
const char *exports_default(void);
/* Calls found with each export's name and a description, until it returns other than 0; that, or -1. */
int exports_list(int (*found)(void *user, const char *name, const char *description), void *user);

/* The disk behind an export, opened if nobody has it open so; NULL for failure. "" is the default. */
struct disk *exports_acquire(const char *name, bool readonly);
/* Closes the disk when nobody else has it. */
int exports_release(struct disk *disk);

/* avhdx_info_json of an export, open or not; free it with avhdx_free. */
char *exports_info(const char *name);
/* Change the layers of a disk in use, as the library's functions do; its export follows to what is the leaf now. The
 * caller holds `changing`. */
int exports_checkpoint(struct disk *disk, const char *to, const avhdx_opts *opts);
int exports_merge(struct disk *disk, uint32_t top, uint32_t base, const avhdx_opts *opts,
                  const avhdx_progress_cb *progress);

/* One line that describes an open disk; free it. */
char *exports_describe(avhdx_disk *handle);

/* Says why the library's last call failed; returns -1. */
int say_failure(int negative_errno);

#endif
