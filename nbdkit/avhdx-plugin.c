/* nbdkit-avhdx-plugin: serves Hyper-V disks and their checkpoints over NBD. The callbacks that nbdkit calls; exports.c
 * knows what is served, control.c changes it meanwhile. Disks are opened in .open: nbdkit forks before. */
#include "control.h"
#include "exports.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* Extents asked for at once. */
#define EXTENTS 256

/* One client's connection. */
struct connection {
    struct disk *disk;
    bool readonly;
};

static avhdx_disk *disk_of(void *handle)
{
    return ((struct connection *)handle)->disk->handle;
}

/* ---- configuration ---- */

static int plugin_config(const char *key, const char *value)
{
    if (strcmp(key, "file") == 0)
        return exports_set_file(value);
    if (strcmp(key, "dir") == 0)
        return exports_set_dir(value);
    if (strcmp(key, "layer") == 0)
        return exports_set_layer(value);
    if (strcmp(key, "control") == 0)
        return control_set_path(value);
    return exports_set_option(key, value);
}

#define CONFIG_HELP                                                                     \
    "[file=]LEAF           The disk; of a chain of checkpoints, the last file.\n"       \
    "dir=DIRECTORY         Serve every leaf in a directory, as an export each.\n"       \
    "layer=N               Serve layer N of the chain (0 = leaf) read-only.\n"          \
    "control=SOCKET        Take checkpoint and merge commands on a Unix socket.\n"      \
    "search=DIR:DIR        Look for parents in these directories too.\n"                \
    "KEY=VALUE             Any other option of avhdx_open: lock, log, cache, ...\n"     \
    "                      See nbdkit-avhdx-plugin(1)."

static int plugin_get_ready(void)
{
    return exports_validate() < 0 ? -1 : control_bind();
}

static int plugin_after_fork(void)
{
    return control_start();
}

static void plugin_cleanup(void)
{
    control_stop();
}

static void plugin_unload(void)
{
    exports_free();
}

static void plugin_dump(void)
{
    static const char *const features[] = { "create", "checkpoint", "merge", "reflink", "check" };

    printf("libavhdx_version=%s\n", avhdx_version());
    for (size_t i = 0; i < sizeof features / sizeof *features; i++)
        printf("libavhdx_%s=%s\n", features[i], avhdx_has(features[i]) ? "yes" : "no");
}

/* ---- exports ---- */

static int add_to_list(void *exports, const char *name, const char *description)
{
    return nbdkit_add_export(exports, name, description);
}

static int plugin_list_exports(int readonly, int is_tls, struct nbdkit_exports *exports)
{
    (void)readonly;
    (void)is_tls;
    return exports_list(add_to_list, exports);
}

static const char *plugin_default_export(int readonly, int is_tls)
{
    (void)readonly;
    (void)is_tls;
    return exports_default();
}

static const char *plugin_export_description(void *handle)
{
    struct connection *connection = handle;
    char *text = exports_describe(connection->disk->handle);
    const char *kept = text ? nbdkit_strdup_intern(text) : NULL;

    free(text);
    return kept;
}

static void *plugin_open(int readonly)
{
    struct connection *connection = calloc(1, sizeof *connection);
    const char *name = nbdkit_export_name();

    if (!connection)
        return NULL;
    connection->disk = exports_acquire(name ? name : "", readonly);
    if (!connection->disk) {
        free(connection);
        return NULL;
    }
    connection->readonly = connection->disk->readonly;
    return connection;
}

static void plugin_close(void *handle)
{
    struct connection *connection = handle;
    int r = exports_release(connection->disk);

    if (r < 0)
        say_failure(r);
    free(connection);
}

/* ---- what a client may do ---- */

static int64_t plugin_get_size(void *handle)
{
    int64_t size = avhdx_get_size(disk_of(handle));

    return size < 0 ? say_failure((int)size) : size;
}

static int plugin_can_write(void *handle)
{
    return !((struct connection *)handle)->readonly;
}

static int plugin_yes(void *handle)
{
    (void)handle;
    return 1;
}

static int plugin_can_fua(void *handle)
{
    (void)handle;
    return NBDKIT_FUA_NATIVE;
}

static int plugin_can_cache(void *handle)
{
    (void)handle;
    return NBDKIT_CACHE_EMULATE;
}

static int plugin_block_size(void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
    struct avhdx_limits limits = AVHDX_LIMITS_INIT;
    int r = avhdx_get_limits(disk_of(handle), &limits);

    if (r < 0)
        return say_failure(r);
    *minimum = 1;
    *preferred = limits.preferred;
    *maximum = 0xffffffff;
    return 0;
}

/* ---- data ---- */

static int done(int r)
{
    return r < 0 ? say_failure(r) : 0;
}

static uint32_t fua(uint32_t flags)
{
    return flags & NBDKIT_FLAG_FUA ? AVHDX_FUA : 0;
}

static int plugin_pread(void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
    (void)flags;
    return done(avhdx_pread(disk_of(handle), buf, count, offset));
}

static int plugin_pwrite(void *handle, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
    return done(avhdx_pwrite(disk_of(handle), buf, count, offset, fua(flags)));
}

static int plugin_flush(void *handle, uint32_t flags)
{
    (void)flags;
    return done(avhdx_flush(disk_of(handle)));
}

static int plugin_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    return done(avhdx_discard(disk_of(handle), offset, count, fua(flags)));
}

static int plugin_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    uint32_t how = fua(flags) | (flags & NBDKIT_FLAG_MAY_TRIM ? AVHDX_MAY_UNMAP : 0) |
                   (flags & NBDKIT_FLAG_FAST_ZERO ? AVHDX_FAST : 0);
    int r = avhdx_zero(disk_of(handle), offset, count, how);

    if (r < 0 && avhdx_error_code(NULL) == AVHDX_ERR_NOT_FAST) {
        /* An answer, not a failure to speak of. */
        nbdkit_set_error(ENOTSUP);
        errno = ENOTSUP;
        return -1;
    }
    return done(r);
}

static int plugin_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                          struct nbdkit_extents *extents)
{
    const bool one = flags & NBDKIT_FLAG_REQ_ONE;
    struct avhdx_extent found[EXTENTS];
    uint64_t end = offset + count;

    while (offset < end) {
        size_t n = EXTENTS;
        uint64_t processed;
        int r = avhdx_block_status(disk_of(handle), offset, end - offset, one ? AVHDX_ONE : 0, found, &n, &processed);

        if (r < 0)
            return say_failure(r);
        for (size_t i = 0; i < n; i++) {
            uint32_t type = found[i].state == AVHDX_STATE_DATA ? 0 : NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO;

            if (nbdkit_add_extent(extents, found[i].offset, found[i].length, type) < 0)
                return -1;
        }
        if (one)
            return 0;
        offset += processed;
    }
    return 0;
}

static struct nbdkit_plugin plugin = {
    .name = "avhdx",
    .longname = "Hyper-V disks and checkpoints",
    .version = "1.0.0",
    .description = "Serves VHDX files and AVHDX chains through libavhdx",
    .unload = plugin_unload,
    .dump_plugin = plugin_dump,
    .config = plugin_config,
    .config_help = CONFIG_HELP,
    .magic_config_key = "file",
    .get_ready = plugin_get_ready,
    .after_fork = plugin_after_fork,
    .cleanup = plugin_cleanup,
    .list_exports = plugin_list_exports,
    .default_export = plugin_default_export,
    .export_description = plugin_export_description,
    .open = plugin_open,
    .close = plugin_close,
    .get_size = plugin_get_size,
    .can_write = plugin_can_write,
    .can_flush = plugin_yes,
    .can_trim = plugin_yes,
    .can_zero = plugin_yes,
    .can_fast_zero = plugin_yes,
    .can_extents = plugin_yes,
    .can_multi_conn = plugin_yes,
    .can_fua = plugin_can_fua,
    .can_cache = plugin_can_cache,
    .block_size = plugin_block_size,
    .pread = plugin_pread,
    .pwrite = plugin_pwrite,
    .flush = plugin_flush,
    .trim = plugin_trim,
    .zero = plugin_zero,
    .extents = plugin_extents,
    .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN(plugin)
