/* Exports: see exports.h. An export is a leaf, by the name of its file, or a layer of it, as NAME@N. */
#include "exports.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

/* A leaf by name. Its path changes when a checkpoint or merge makes another file the leaf. */
struct export {
    char *name;
    char *path;
    struct export *next;
};

struct option {
    char *key;
    char *value;
    struct option *next;
};

static char *config_file, *config_dir, *default_name;
static int config_layer; /* 0: the leaf */
static bool config_readonly;
static struct option *options;

/* Guards what follows. Held while a disk is opened or closed, not while it is used. */
static pthread_mutex_t table = PTHREAD_MUTEX_INITIALIZER;
static struct export *exports;
static struct disk *disks;

static _Thread_local struct failure failure;

const struct failure *exports_failure(void)
{
    return &failure;
}

__attribute__((format(printf, 4, 5)))
static int say(int code, int error, const char *hint, const char *format, ...)
{
    va_list arguments;

    failure.code = code;
    snprintf(failure.hint, sizeof failure.hint, "%s", hint);
    va_start(arguments, format);
    vsnprintf(failure.message, sizeof failure.message, format, arguments);
    va_end(arguments);
    nbdkit_error("%s%s%s%s", failure.message, *hint ? " (" : "", hint, *hint ? ")" : "");
    nbdkit_set_error(error);
    errno = error;
    return -1;
}

int exports_refuse(const char *message, const char *hint)
{
    return say(AVHDX_ERR_ARGUMENT, EINVAL, hint, "%s", message);
}

int say_failure(int r)
{
    return say(avhdx_error_code(NULL), -r, avhdx_error_hint(NULL), "%s", avhdx_error_message(NULL));
}

static int no_memory(void)
{
    return say(AVHDX_ERR_IO, ENOMEM, "", "out of memory");
}

/* ---- configuration ---- */

int exports_set_file(const char *path)
{
    free(config_file);
    config_file = nbdkit_realpath(path);
    return config_file ? 0 : -1;
}

int exports_set_dir(const char *path)
{
    free(config_dir);
    config_dir = nbdkit_realpath(path);
    return config_dir ? 0 : -1;
}

int exports_set_layer(const char *number)
{
    return nbdkit_parse_int("layer", number, &config_layer);
}

/* Makes relative the directories in a value absolute, for nbdkit leaves its directory: each follows `before` or a
 * separator, up to the next separator. */
static char *absolute(const char *value, char separator, char before)
{
    char *all = strdup(""), *copy = strdup(value), *rest = copy, *part;
    const char sep[2] = { separator, 0 };

    while (all && rest && (part = strsep(&rest, sep))) {
        char *dir = before ? strchr(part, before) : part;
        char *full, *longer;

        dir = dir ? dir + (before != 0) : part;
        full = nbdkit_absolute_path(dir);
        if (!full || asprintf(&longer, "%s%.*s%s%s", all, (int)(dir - part), part, full, rest ? sep : "") < 0)
            longer = NULL;
        free(full);
        free(all);
        all = longer;
    }
    free(copy);
    return all;
}

/* Whether avhdx_open knows the key, as the library's schema says. */
static bool is_open_key(const char *key)
{
    char *schema = avhdx_schema_json("open"), quoted[64];
    bool known;

    snprintf(quoted, sizeof quoted, "\"name\":\"%s\"", key);
    known = schema && strstr(schema, quoted);
    avhdx_free(schema);
    return known;
}

int exports_set_option(const char *key, const char *value)
{
    avhdx_opts *trial;
    struct option *option;
    int r;

    if (strcmp(key, "read-only") == 0) {
        r = nbdkit_parse_bool(value);
        config_readonly = r == 1;
        return r < 0 ? -1 : 0;
    }
    trial = avhdx_opts_new();
    r = avhdx_opts_set_str(trial, key, value);

    avhdx_opts_free(trial);
    if (r < 0)
        return say_failure(r);
    if (!is_open_key(key))
        return say(AVHDX_ERR_ARGUMENT, EINVAL, "see nbdkit avhdx --help", "\"%s\" is no option of opening a disk", key);
    option = calloc(1, sizeof *option);
    if (!option)
        return no_memory();
    option->key = strdup(key);
    if (strcmp(key, "search") == 0)
        option->value = absolute(value, ':', 0);
    else if (strcmp(key, "parent-root") == 0)
        option->value = nbdkit_absolute_path(value);
    else if (strcmp(key, "drive-map") == 0)
        option->value = absolute(value, ';', '=');
    else
        option->value = strdup(value);
    option->next = options;
    options = option;
    return option->key && option->value ? 0 : no_memory();
}

static avhdx_opts *open_options(bool readonly)
{
    avhdx_opts *opts = avhdx_opts_new();

    for (struct option *o = options; o; o = o->next)
        avhdx_opts_set_str(opts, o->key, o->value);
    if (readonly)
        avhdx_opts_set_bool(opts, "read-only", 1);
    return opts;
}

/* A disk to ask about: the one that is served, or else one opened without locks, which writes nothing. The caller gives
 * it back with stop_looking. */
static int look(avhdx_disk **handle, const char *path)
{
    avhdx_opts *opts;
    int r;

    for (struct disk *disk = disks; disk; disk = disk->next) {
        if (strcmp(disk->path, path) == 0) {
            *handle = disk->handle;
            return 0;
        }
    }
    opts = open_options(true);
    avhdx_opts_set_bool(opts, "lock", 0);
    avhdx_opts_set_str(opts, "log", "memory");
    r = avhdx_open(handle, path, opts);
    avhdx_opts_free(opts);
    return r;
}

static void stop_looking(avhdx_disk *handle)
{
    for (struct disk *disk = disks; disk; disk = disk->next)
        if (disk->handle == handle)
            return;
    avhdx_abort(handle);
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

/* ---- which files are leaves ---- */

struct candidate {
    char *path;
    struct avhdx_probe probe;
    bool has_child;
};

struct scan {
    struct candidate *files;
    size_t n;
};

static void scan_free(struct scan *scan)
{
    for (size_t i = 0; i < scan->n; i++)
        free(scan->files[i].path);
    free(scan->files);
}

static bool is_disk_name(const char *name)
{
    const char *dot = strrchr(name, '.');

    return dot && (strcasecmp(dot, ".vhdx") == 0 || strcasecmp(dot, ".avhdx") == 0);
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct candidate *)a)->path, ((const struct candidate *)b)->path);
}

static bool is_child(const struct candidate *file, const uint8_t *parent)
{
    return (file->probe.flags & AVHDX_INFO_HAS_PARENT) &&
           (memcmp(file->probe.parent_linkage, parent, 16) == 0 || memcmp(file->probe.parent_linkage2, parent, 16) == 0);
}

/* Looks at every disk in a directory; one that another names as its parent has a child. */
static int scan_dir(const char *path, struct scan *scan)
{
    DIR *dir = opendir(path);
    struct dirent *entry;

    memset(scan, 0, sizeof *scan);
    if (!dir)
        return say(AVHDX_ERR_IO, errno, "", "%s: %s", path, strerror(errno));
    while ((entry = readdir(dir))) {
        struct candidate found = { .probe = AVHDX_PROBE_INIT };
        struct candidate *more;

        if (!is_disk_name(entry->d_name))
            continue;
        if (asprintf(&found.path, "%s/%s", path, entry->d_name) < 0)
            found.path = NULL;
        if (!found.path || avhdx_probe(found.path, &found.probe) < 0) {
            nbdkit_debug("not served: %s", avhdx_error_message(NULL));
            free(found.path);
            continue;
        }
        more = realloc(scan->files, (scan->n + 1) * sizeof *more);
        if (!more) {
            free(found.path);
            break;
        }
        scan->files = more;
        scan->files[scan->n++] = found;
    }
    closedir(dir);
    for (size_t i = 0; i < scan->n; i++)
        for (size_t j = 0; j < scan->n; j++)
            if (is_child(&scan->files[j], scan->files[i].probe.data_write_guid))
                scan->files[i].has_child = true;
    if (scan->n)
        qsort(scan->files, scan->n, sizeof *scan->files, by_path);
    return 0;
}

/* Writing to a file that is somebody's parent makes the children unusable. They are looked for where the file itself
 * is, which may be elsewhere than a link to it. */
static int refuse_parent(const char *path)
{
    struct avhdx_probe probe = AVHDX_PROBE_INIT;
    char *dir = realpath(path, NULL);
    struct scan scan;
    int r = 0;

    /* What cannot be looked at cannot be opened, and the open says why. */
    if (!dir || avhdx_probe(dir, &probe) < 0) {
        free(dir);
        return 0;
    }
    dir[base_name(dir) - dir] = 0;
    if (scan_dir(dir, &scan) == 0) {
        for (size_t i = 0; i < scan.n; i++)
            if (is_child(&scan.files[i], probe.data_write_guid))
                r = -1;
        scan_free(&scan);
    }
    free(dir);
    if (r < 0)
        say(AVHDX_ERR_HAS_CHILDREN, EBUSY, "serve the last file of the chain, or serve this one with -r",
            "%s has a child in its directory, which a write would make unusable", path);
    return r;
}

/* ---- exports by name ---- */

static struct export *find_export(const char *name)
{
    struct export *e = exports;

    while (e && strcmp(e->name, name) != 0)
        e = e->next;
    return e;
}

/* A file that another export has followed to is served already. */
static struct export *add_export(const char *path)
{
    struct export *e = exports;

    while (e && strcmp(e->name, base_name(path)) != 0 && strcmp(e->path, path) != 0)
        e = e->next;
    if (e)
        return e;
    e = calloc(1, sizeof *e);
    if (e) {
        e->name = strdup(base_name(path));
        e->path = strdup(path);
        e->next = exports;
        exports = e;
    }
    return e;
}

/* Adds the leaves that are in the directory now. */
static int refresh(void)
{
    struct scan scan;

    if (!config_dir)
        return 0;
    if (scan_dir(config_dir, &scan) < 0)
        return -1;
    for (size_t i = scan.n; i-- > 0;)
        if (!scan.files[i].has_child)
            add_export(scan.files[i].path);
    scan_free(&scan);
    return 0;
}

static int no_layer(const char *path, unsigned long layer, int layers)
{
    return say(AVHDX_ERR_ARGUMENT, ENOENT, "", "%s has no layer %lu: it has the layers 0 to %d", path, layer, layers - 1);
}

int exports_validate(void)
{
    if (!config_file == !config_dir)
        return say(AVHDX_ERR_ARGUMENT, EINVAL, "", "give either file=LEAF or dir=DIRECTORY");
    if (config_dir && config_layer)
        return say(AVHDX_ERR_ARGUMENT, EINVAL, "a client asks for the export LEAF@N",
                   "layer= goes with file=, not with dir=");
    if (config_layer < 0)
        return say(AVHDX_ERR_ARGUMENT, EINVAL, "", "layer=%d: layers have numbers from 0, the leaf", config_layer);
    if (config_file) {
        avhdx_disk *handle;
        int r = look(&handle, config_file), layers;

        if (r < 0)
            return say_failure(r);
        layers = avhdx_layer_count(handle);
        stop_looking(handle);
        if (config_layer >= layers)
            return no_layer(config_file, config_layer, layers);
        if (!add_export(config_file))
            return no_memory();
    }
    if (refresh() < 0)
        return -1;
    if (exports && !exports->next &&
        (config_layer ? asprintf(&default_name, "%s@%d", exports->name, config_layer)
                      : asprintf(&default_name, "%s", exports->name)) < 0)
        default_name = NULL;
    return 0;
}

void exports_free(void)
{
    while (exports) {
        struct export *e = exports;

        exports = e->next;
        free(e->name);
        free(e->path);
        free(e);
    }
    while (options) {
        struct option *o = options;

        options = o->next;
        free(o->key);
        free(o->value);
        free(o);
    }
    free(config_file);
    free(config_dir);
    free(default_name);
}

const char *exports_default(void)
{
    return default_name;
}

char *exports_describe(avhdx_disk *handle)
{
    static const char *const types[] = { "", "fixed", "dynamic", "differencing" };
    struct avhdx_info info = AVHDX_INFO_INIT;
    char *text;

    if (avhdx_get_info(handle, &info) < 0 ||
        asprintf(&text, "%s: %s, %" PRIu64 " bytes, %" PRIu32 " layer%s", avhdx_layer_path(handle, 0),
                 info.type < 4 ? types[info.type] : "", info.virtual_size, info.layer_count,
                 info.layer_count == 1 ? "" : "s") < 0)
        return NULL;
    return text;
}

int exports_list(int (*found)(void *, const char *, const char *), void *user)
{
    int r;

    pthread_mutex_lock(&table);
    r = refresh();
    for (struct export *e = exports; e && r == 0; e = e->next) {
        avhdx_disk *handle;
        int layers = 1;
        char *text = NULL;

        if (look(&handle, e->path) == 0) {
            text = exports_describe(handle);
            layers = avhdx_layer_count(handle);
        } else if (asprintf(&text, "%s", avhdx_error_message(NULL)) < 0) {
            text = NULL;
        }
        if (!config_layer)
            r = found(user, e->name, text);
        free(text);
        for (int layer = 1; layer < layers && r == 0; layer++) {
            const char *path;
            char *name;

            if (config_layer && layer != config_layer)
                continue;
            if (asprintf(&name, "%s@%d", e->name, layer) < 0)
                break;
            text = NULL;
            path = avhdx_layer_path(handle, (uint32_t)layer);
            if (asprintf(&text, "%s, read-only", path ? path : "merged away") < 0)
                text = NULL;
            r = found(user, name, text);
            free(text);
            free(name);
        }
        stop_looking(handle);
    }
    pthread_mutex_unlock(&table);
    return r;
}

/* The leaf that an export's name means, and the layer; NULL for failure. */
static struct export *find_layer(const char *name, unsigned long *layer)
{
    const char *at;
    struct export *e;
    char *leaf, *end;

    *layer = 0;
    if (refresh() < 0)
        return NULL;
    if (!*name && default_name)
        name = default_name;
    /* A file name may contain an @ too. */
    e = find_export(name);
    at = strrchr(name, '@');
    if (!e && at && at[1] >= '0' && at[1] <= '9') {
        *layer = strtoul(at + 1, &end, 10);
        leaf = strndup(name, (size_t)(at - name));
        e = leaf && *end == 0 ? find_export(leaf) : NULL;
        free(leaf);
    }
    if (e && (!config_layer || *layer == (unsigned long)config_layer))
        return e;
    say(AVHDX_ERR_ARGUMENT, ENOENT, "nbdinfo --list shows them", "there is no export \"%s\"", name);
    return NULL;
}

/* The path of a layer below a leaf, to be freed; NULL for failure. */
static char *layer_path(const char *leaf, unsigned long layer)
{
    avhdx_disk *handle;
    const char *found = NULL;
    char *path = NULL;
    int r = look(&handle, leaf);

    if (r < 0) {
        say_failure(r);
        return NULL;
    }
    if (layer <= UINT32_MAX)
        found = avhdx_layer_path(handle, (uint32_t)layer);
    if (!found)
        no_layer(leaf, layer, avhdx_layer_count(handle));
    else if (!(path = strdup(found)))
        no_memory();
    stop_looking(handle);
    return path;
}

static struct disk *open_disk(struct export *e, unsigned long layer, const char *path, bool readonly)
{
    struct disk *disk = disks;
    avhdx_opts *opts;
    int r;

    while (disk && (disk->export != e || disk->layer != layer || disk->readonly != readonly))
        disk = disk->next;
    if (disk && strcmp(disk->path, path) == 0)
        return disk;
    if (disk) {
        /* One client's connections must not read different disks. */
        say(AVHDX_ERR_LOCKED, EBUSY, "ask again when they are gone, or for the number that layer has now",
            "%s@%lu was %s when clients connected that still are, and is %s now", e->name, layer, disk->path, path);
        return NULL;
    }
    if (!readonly && refuse_parent(path) < 0)
        return NULL;
    disk = calloc(1, sizeof *disk);
    if (!disk || !(disk->path = strdup(path))) {
        free(disk);
        no_memory();
        return NULL;
    }
    opts = open_options(readonly);
    r = avhdx_open(&disk->handle, path, opts);
    avhdx_opts_free(opts);
    if (r < 0) {
        free(disk->path);
        free(disk);
        say_failure(r);
        return NULL;
    }
    disk->export = e;
    disk->layer = layer;
    disk->readonly = readonly;
    pthread_mutex_init(&disk->changing, NULL);
    disk->next = disks;
    disks = disk;
    return disk;
}

struct disk *exports_acquire(const char *name, bool readonly)
{
    struct disk *disk = NULL;
    struct export *e;
    unsigned long layer;

    pthread_mutex_lock(&table);
    e = find_layer(name, &layer);
    if (e) {
        char *path = layer ? layer_path(e->path, layer) : strdup(e->path);

        if (path)
            disk = open_disk(e, layer, path, readonly || config_readonly || layer);
        free(path);
    }
    if (disk)
        disk->users++;
    pthread_mutex_unlock(&table);
    return disk;
}

char *exports_info(const char *name)
{
    char *json = NULL, *path = NULL;
    avhdx_disk *handle;
    struct export *e;
    unsigned long layer;
    int r;

    pthread_mutex_lock(&table);
    e = find_layer(name, &layer);
    if (e)
        path = layer ? layer_path(e->path, layer) : strdup(e->path);
    if (path) {
        r = look(&handle, path);
        if (r == 0)
            json = avhdx_info_json(handle);
        if (!json)
            say_failure(r < 0 ? r : -avhdx_error_errno(NULL));
        stop_looking(handle);
    }
    free(path);
    pthread_mutex_unlock(&table);
    return json;
}

int exports_release(struct disk *disk)
{
    int r = 0;

    pthread_mutex_lock(&table);
    if (--disk->users == 0) {
        struct disk **link = &disks;

        while (*link != disk)
            link = &(*link)->next;
        *link = disk->next;
        r = avhdx_close(disk->handle);
        pthread_mutex_destroy(&disk->changing);
        free(disk->path);
        free(disk);
    }
    pthread_mutex_unlock(&table);
    return r;
}

/* Export and disk follow to the file that is the leaf now, under the name that a directory's listing has for it. */
static void follow(struct disk *disk)
{
    const char *leaf = avhdx_layer_path(disk->handle, 0);
    char *now = realpath(leaf, NULL), *again;

    if (!now)
        now = strdup(leaf);
    again = now ? strdup(now) : NULL;
    pthread_mutex_lock(&table);
    if (again) {
        free(disk->export->path);
        free(disk->path);
        disk->export->path = now;
        disk->path = again;
    } else {
        free(now);
    }
    pthread_mutex_unlock(&table);
}

int exports_checkpoint(struct disk *disk, const char *to, const avhdx_opts *opts)
{
    int r = avhdx_checkpoint(disk->handle, to, opts);

    if (r < 0)
        return say_failure(r);
    follow(disk);
    return 0;
}

int exports_merge(struct disk *disk, uint32_t top, uint32_t base, const avhdx_opts *opts,
                  const avhdx_progress_cb *progress)
{
    int r = avhdx_merge(disk->handle, top, base, opts, progress);

    if (r < 0)
        say_failure(r);
    /* A merge can fail after the layers changed, when the files merged away could not be removed. */
    follow(disk);
    return r < 0 ? -1 : 0;
}
