/*
 * libavhdx: Hyper-V VHDX/AVHDX differencing chains on Linux
 *
 * A checkpoint of a Hyper-V virtual machine leaves a chain of files, base.vhdx <- a.avhdx <- b.avhdx. Each holds what
 * changed since its parent; writes go to the last, the leaf. This library opens a chain as one disk, reads and writes
 * it, takes checkpoints, merges layers, and loses nothing that was flushed, whenever the power fails.
 *
 * Example: what a disk holds in its first sector.
 *
 * #include <avhdx.h>
 * #include <stdio.h>
 *
 * int main(int argc, char **argv)
 * {
 *     avhdx_disk *disk;
 *     avhdx_opts *opts = avhdx_opts_new();
 *     unsigned char sector[512];
 *     int r = argc == 2 ? avhdx_opts_parse(opts, "read-only=on,search=/srv/parents") : -1;
 *
 *     if (r == 0)
 *         r = avhdx_open(&disk, argv[1], opts);
 *     avhdx_opts_free(opts);
 *     if (r == 0) {
 *         r = avhdx_pread(disk, sector, sizeof sector, 0);
 *         if (r == 0)
 *             printf("%d layers, boot signature %02x%02x\n", avhdx_layer_count(disk), sector[510], sector[511]);
 *         avhdx_close(disk);
 *     }
 *     if (r < 0) {
 *         fprintf(stderr, "%s\n%s\n", avhdx_error_message(NULL), avhdx_error_hint(NULL));
 *         return 1;
 *     }
 *     return 0;
 * }
 *
 * Build with: cc example.c $(pkg-config --cflags --libs avhdx)
 *
 * Results. A function that can fail returns int or int64_t: 0 or more for success, a negative errno for failure. One
 * that returns a pointer returns NULL for failure. avhdx_last_error() then has the details.
 *
 * Ownership. Handles come from _open, _new and _dup functions and go back through _close, _abort or _free. Those
 * accept NULL. Strings that callers own are freed with avhdx_free; all others say how long they live. The library
 * copies what it is given: paths, options and structures need not outlive the call.
 *
 * NULL. Each function says which pointers may be NULL; any other NULL is -EINVAL and the message names the parameter.
 * Output handles are set to NULL on failure; other outputs are written on success only.
 *
 * Threads. A disk may be used by any number of threads at once; avhdx_close and avhdx_abort come last, when no other
 * call on the disk runs. Options objects are used by one thread at a time. A disk does not survive fork: open it in
 * the process that uses it. The library starts no threads but that of a job and those asked for with the key threads,
 * all of which end with their call; it prints nothing, reads no environment, handles no signals.
 *
 * Text. Paths are bytes, as the system takes them; all other strings are UTF-8.
 *
 * Compatibility. What a program compiled with this header uses keeps its meaning in every libavhdx.so.1. Structures
 * grow only at the end and carry their size; unknown flag bits and option keys are refused, never ignored.
 */

#ifndef AVHDX_H
#define AVHDX_H

/* Generated from src/ffi by scripts/update-header. */

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this header; avhdx_version() tells that of the library in use. */
#define AVHDX_VERSION_MAJOR 1
#define AVHDX_VERSION_MINOR 0
#define AVHDX_VERSION_MICRO 0

/* Handles and callbacks; each is described in its section. */
typedef struct avhdx_disk avhdx_disk;
typedef struct avhdx_opts avhdx_opts;
typedef struct avhdx_error avhdx_error;
typedef struct avhdx_progress_cb avhdx_progress_cb;
typedef struct avhdx_log_cb avhdx_log_cb;
typedef struct avhdx_resolve_cb avhdx_resolve_cb;
typedef struct avhdx_issue_cb avhdx_issue_cb;
typedef struct avhdx_job avhdx_job;
typedef struct avhdx_tree avhdx_tree;
struct avhdx_io_ops;

/* ---- The library ---- */

/* Something failed that no return value reports. */
#define AVHDX_LOG_ERROR 1
/* Something is odd and was worked around. */
#define AVHDX_LOG_WARN 2
/* What was decided: a parent found, a log replayed. */
#define AVHDX_LOG_INFO 3
/* Steps, for a bug report. */
#define AVHDX_LOG_DEBUG 4

/* The version of the library in use, "1.0.0". Never NULL; lives as long as the library. Any thread. Since 1.0. */
const char *avhdx_version(void);

/*
 * 1 if the library in use has a feature, 0 if not: "create", "checkpoint", "merge", "merge.copy", "merge.reflink",
 * "merge.consume", "reflink", "revert", "delete", "reparent", "rebase", "detach", "compact", "resize", "metadata",
 * "convert", "migrate", "vhd" (VHD is read by avhdx_migrate and written by avhdx_convert), "diff", "compare",
 * "digest", "tree", "check", "repair", "job", "io-ops", "open-fd", "resolver". A name nobody knows is 0.
 * feature: not NULL. Any thread. Since 1.0.
 */
int avhdx_has(const char *feature);

/*
 * The options of "open", "create", "checkpoint", "merge", "revert", "delete", "reparent", "rebase", "detach",
 * "compact", "resize", "convert", "migrate", "compare", "digest", "tree", "check",
 * "repair" or "job" as a JSON array of
 * {"name", "type", "default", "meaning", "since"} and, for type "choice", "choices". Free it with avhdx_free.
 * NULL for another kind. kind: not NULL. Any thread. Since 1.0.
 */
char *avhdx_schema_json(const char *kind);

/* Frees a string that the library returned as "free it with avhdx_free". pointer: may be NULL. Any thread. Since 1.0. */
void avhdx_free(void *pointer);

/*
 * Sets where the messages of the library go, for the whole process; replaces and frees what was set before. level is
 * the least important kind wanted, AVHDX_LOG_ERROR to AVHDX_LOG_DEBUG. Nothing is said by default.
 * callback: NULL silences (level must then be 0). Any thread; the callback may be called on any thread that calls the
 * library, and may still be running on one when this returns. Since 1.0.
 */
int avhdx_set_log(const avhdx_log_cb *callback, uint32_t level);

/* ---- Errors ---- */

/*
 * Every function that can fail returns a negative errno (or NULL). Detail about a thread's latest failure is in an
 * error object; successful calls leave it alone.
 */

/* The file does not begin with the VHDX signature. */
#define AVHDX_ERR_NOT_VHDX 1
/* A version, required region, required item or locator type this library does not know. */
#define AVHDX_ERR_UNSUPPORTED 2
/* A rule of the format is broken; the cause names structure, rule, file offset, found and wanted. */
#define AVHDX_ERR_CORRUPT 3
/* A checksum does not match. */
#define AVHDX_ERR_CHECKSUM 4
/* The file ends before a structure it must hold. */
#define AVHDX_ERR_TRUNCATED 5
/* The log must be replayed and the options or the file forbid it. */
#define AVHDX_ERR_LOG_REPLAY_REQUIRED 6
/* No candidate for the parent exists; the message lists what was tried. */
#define AVHDX_ERR_PARENT_NOT_FOUND 7
/* A file was found where the parent should be, and is another disk or was modified. */
#define AVHDX_ERR_PARENT_ID_MISMATCH 8
/* The parent exists and policy or permission forbids opening it. */
#define AVHDX_ERR_PARENT_ACCESS 9
/* The parent has another logical sector size. */
#define AVHDX_ERR_PARENT_MISMATCH 10
/* The chain returns to itself or is deeper than allowed. */
#define AVHDX_ERR_CHAIN_LOOP 11
/* The operation would make other files unusable; the message lists them. */
#define AVHDX_ERR_HAS_CHILDREN 12
/* Another program uses the file. */
#define AVHDX_ERR_LOCKED 13
/* A write to something opened, or only available, for reading. */
#define AVHDX_ERR_READ_ONLY 14
/* There is not enough space. */
#define AVHDX_ERR_NO_SPACE 15
/* A range that is not inside the virtual disk. */
#define AVHDX_ERR_RANGE 16
/* An argument or option that cannot be used. */
#define AVHDX_ERR_ARGUMENT 17
/* Shrinking would cut data. */
#define AVHDX_ERR_SHRINK_UNSAFE 18
/* An interrupted operation must be finished first. */
#define AVHDX_ERR_PENDING_OPERATION 19
/* The caller asked to stop; what was done so far is consistent and can be continued. */
#define AVHDX_ERR_CANCELLED 20
/* The operation cannot be done by changing metadata alone (AVHDX_FAST). */
#define AVHDX_ERR_NOT_FAST 21
/* An earlier metadata write failed, so no more are made; the cause is the first failure. */
#define AVHDX_ERR_POISONED 22
/* The operating system or the I/O callbacks reported a failure; errno is theirs. */
#define AVHDX_ERR_IO 23
/* A defect of this library. Only avhdx_close and avhdx_abort work on the handle from here on. */
#define AVHDX_ERR_BUG 24

/* One failure: code, errno, HRESULT, message, hint, path, layer, offset, cause. */
struct avhdx_error;

/*
 * The latest failure on this thread. Never NULL: before the first failure it is an object with code 0. Valid until
 * the next call on this thread that fails; avhdx_error_dup keeps it. Do not free it. Any thread. Since 1.0.
 */
const avhdx_error *avhdx_last_error(void);

/* The code, AVHDX_ERR_...; 0 for no error. error: NULL means avhdx_last_error(). Since 1.0. */
int avhdx_error_code(const avhdx_error *error);

/*
 * The errno, positive: the operating system's own where it gave one. 0 for no error.
 * error: NULL means avhdx_last_error(). Since 1.0.
 */
int avhdx_error_errno(const avhdx_error *error);

/*
 * The HRESULT Windows uses for the same condition; 0 where it has none.
 * error: NULL means avhdx_last_error(). Since 1.0.
 */
uint32_t avhdx_error_hresult(const avhdx_error *error);

/*
 * What happened, in one line of UTF-8 that begins with the file, if one is concerned. Never NULL; lives with the
 * error. error: NULL means avhdx_last_error(). Since 1.0.
 */
const char *avhdx_error_message(const avhdx_error *error);

/*
 * What to do about it: a command, an option, a next step. "" where nothing helps. Never NULL; lives with the error.
 * error: NULL means avhdx_last_error(). Since 1.0.
 */
const char *avhdx_error_hint(const avhdx_error *error);

/*
 * The file concerned, as bytes; "" if none. Never NULL; lives with the error.
 * error: NULL means avhdx_last_error(). Since 1.0.
 */
const char *avhdx_error_path(const avhdx_error *error);

/* The layer concerned, 0 = leaf; -1 if none. error: NULL means avhdx_last_error(). Since 1.0. */
int32_t avhdx_error_layer(const avhdx_error *error);

/*
 * The offset concerned, in bytes: of the virtual disk for a request, of the file for a structure; -1 if none.
 * error: NULL means avhdx_last_error(). Since 1.0.
 */
int64_t avhdx_error_offset(const avhdx_error *error);

/*
 * What lies beneath: the broken rule with its place, found and wanted values, or the operating system's words; causes
 * joined by ": ", "" if none. Never NULL; lives with the error. error: NULL means avhdx_last_error(). Since 1.0.
 */
const char *avhdx_error_cause(const avhdx_error *error);

/*
 * Copies an error, to keep it or to give it to another thread. Free the copy with avhdx_error_free.
 * error: not NULL (returns NULL). Since 1.0.
 */
avhdx_error *avhdx_error_dup(const avhdx_error *error);

/* Frees what avhdx_error_dup returned; nothing else. error: may be NULL. Since 1.0. */
void avhdx_error_free(avhdx_error *error);

/*
 * The name of a code without AVHDX_ERR_: "PARENT_NOT_FOUND". "OK" for 0, "UNKNOWN" for what this version does not
 * know. Never NULL; lives as long as the library. Any thread. Since 1.0.
 */
const char *avhdx_code_name(int code);

/* ---- Options ---- */

/*
 * Everything a caller can choose has a string key; avhdx_schema_json lists them. One object can serve several calls;
 * a call takes what it needs from it and keeps nothing that belongs to the caller. An unknown key, a value that
 * cannot be used, and a key that is not for the call it is given to are -EINVAL, code ARGUMENT, and the message
 * names them. An options object is used by one thread at a time.
 */

/* Options by name. Made by avhdx_opts_new, freed by avhdx_opts_free. */
struct avhdx_opts;

/* Makes options that are all default. Never NULL. Free them with avhdx_opts_free. Any thread. Since 1.0. */
avhdx_opts *avhdx_opts_new(void);

/*
 * Sets an option from text: a size such as "64k", "2M", "1G"; a bool such as "on"; a word; a path (bytes). A second
 * value for the same key replaces the first. opts, key, value: not NULL. Since 1.0.
 */
int avhdx_opts_set_str(avhdx_opts *opts, const char *key, const char *value);

/* Sets an option from a number; sizes are in bytes. opts, key: not NULL. Since 1.0. */
int avhdx_opts_set_u64(avhdx_opts *opts, const char *key, uint64_t value);

/* Sets an option to on (value is not 0) or off. opts, key: not NULL. Since 1.0. */
int avhdx_opts_set_bool(avhdx_opts *opts, const char *key, int value);

/*
 * Sets options from one line: "key=value,key=value". A comma in a value is written twice; a key alone means "on".
 * Either all of the line is taken or, on failure, nothing. opts, line: not NULL. Since 1.0.
 */
int avhdx_opts_parse(avhdx_opts *opts, const char *line);

/*
 * Sets who is asked first where parents are. Its free runs when neither opts nor a disk opened with it needs it.
 * opts: not NULL; callback: NULL removes it. Since 1.0.
 */
int avhdx_opts_set_resolver(avhdx_opts *opts, const avhdx_resolve_cb *callback);

/*
 * Puts all files of a disk on the caller's functions (see "Custom I/O"). The structure is copied. Its free runs when
 * neither opts nor a disk opened with it needs ctx, and at once if this call fails.
 * opts: not NULL; ops: NULL returns to the host's files; ctx: anything. Since 1.0.
 */
int avhdx_opts_set_io(avhdx_opts *opts, const struct avhdx_io_ops *ops, void *ctx);

/* Frees options; disks opened with them do not need them. opts: may be NULL. Since 1.0. */
void avhdx_opts_free(avhdx_opts *opts);

/* ---- Callbacks ---- */

/*
 * A callback is { fn, user, free }: fn is called on the thread that makes the call, with user as its first argument;
 * free (may be NULL) is called with user exactly once when the library has no more use for it, also when the call
 * that took the callback fails. The structure itself is copied; it need not outlive the call. Callbacks must not
 * unwind.
 */

/*
 * Told now and then how far a long operation is: done of total bytes, total never shrinking below done. A result
 * other than 0 cancels: the operation ends with -ECANCELED and can be run again to continue.
 * It may call functions that read or describe the same disk, and anything on other disks. Since 1.0.
 */
struct avhdx_progress_cb
{
    /* Not NULL. */
    int (*fn)(void *user, uint64_t done, uint64_t total);
    /* Passed to fn. */
    void *user;
    /* Called once with user; may be NULL. */
    void (*free)(void *user);
};

/*
 * Receives a line of UTF-8, without a final newline, that lives for the call. May be called by several threads at
 * once. Since 1.0.
 */
struct avhdx_log_cb
{
    /* Not NULL. level is AVHDX_LOG_... */
    void (*fn)(void *user, uint32_t level, const char *message);
    /* Passed to fn. */
    void *user;
    /* Called once with user; may be NULL. */
    void (*free)(void *user);
};

/* The question put to a resolver: where is the parent of this file? All strings live for the call. Since 1.0. */
struct avhdx_parent_query
{
    /* Bytes of this structure that the library filled. */
    uint32_t struct_size;
    /* Length of keys and values. */
    uint32_t entry_count;
    /* The path of the file whose parent is wanted. */
    const char *child;
    /* The data write GUID the parent must have, as stored. */
    uint8_t linkage[16];
    /* Names of the parent locator's entries, UTF-8: "relative_path", "absolute_win32_path", ... */
    const char *const *keys;
    /* Their values, UTF-8. */
    const char *const *values;
};

/*
 * Answers where a parent is, before the library looks for it. fn writes a path that ends in a NUL byte to path, which
 * has room for size bytes, and returns 1; or returns 0 to leave the search to the library. The file named must still
 * have the right identity. Since 1.0.
 */
struct avhdx_resolve_cb
{
    /* Not NULL. */
    int (*fn)(void *user, const struct avhdx_parent_query *query, char *path, size_t size);
    /* Passed to fn. */
    void *user;
    /* Called once with user; may be NULL. */
    void (*free)(void *user);
};

/* ---- Custom I/O ---- */

/*
 * Files that are not the host's: a table of functions through which the library reaches every file of a disk. Give
 * it to options with avhdx_opts_set_io. Paths are names in the caller's own name space; the library passes them
 * absolute, with "." and ".." resolved, and takes a relative one to be in "/". Functions return 0 or a negative
 * errno (get_size: the size or a negative errno), transfer the whole range or fail, may be called from every thread
 * that uses the disk, at the same time, and must not call the library with the same disk.
 */

/* open: for reading and writing; without it for reading only. */
#define AVHDX_IO_WRITE 1
/* zero: only if it gives the space of the range back; otherwise fail with -ENOTSUP. */
#define AVHDX_IO_RELEASE 1
/* lock: nothing is held any more. */
#define AVHDX_IO_UNLOCKED 0
/* lock: other readers are welcome, writers are not. */
#define AVHDX_IO_LOCK_READ 1
/* lock: nobody else is welcome. */
#define AVHDX_IO_LOCK_WRITE 2

/*
 * The functions of avhdx_opts_set_io. Set struct_size with AVHDX_IO_OPS_INIT. Members marked "optional" may be NULL;
 * an operation that needs one which is missing fails with AVHDX_ERR_UNSUPPORTED and names it. ctx is the pointer
 * given to avhdx_opts_set_io, file what open or create made. Since 1.0.
 */
struct avhdx_io_ops
{
    /* Size of this structure in the caller's program. */
    uint32_t struct_size;
    /* Must be 0. */
    uint32_t flags;
    /*
     * Optional. Called once with ctx when neither options nor disks use it any more, also when avhdx_opts_set_io
     * fails.
     */
    void (*free)(void *ctx);
    /* Opens an existing file: flags is 0 or AVHDX_IO_WRITE. -ENOENT when there is none. */
    int (*open)(void *ctx, const char *path, uint32_t flags, void **file);
    /* Optional. Closes a file; called once for each success of open and create. */
    void (*close)(void *ctx, void *file);
    /* Reads count bytes at offset; the library asks for nothing past the size. */
    int (*pread)(void *ctx, void *file, void *buf, size_t count, uint64_t offset);
    /* Writes count bytes at offset, growing the file when needed; a gap reads as zeros. Optional for reading. */
    int (*pwrite)(void *ctx, void *file, const void *buf, size_t count, uint64_t offset);
    /* Makes everything written, and the size, survive power loss. Optional for reading. */
    int (*flush)(void *ctx, void *file);
    /* The size in bytes. */
    int64_t (*get_size)(void *ctx, void *file);
    /* Sets the size; new bytes read as zeros. Optional for reading. */
    int (*set_size)(void *ctx, void *file, uint64_t size);
    /*
     * Optional. Makes a range inside the file read as zeros; flags is 0 or AVHDX_IO_RELEASE. Zeros are written
     * instead when it is missing or returns -ENOTSUP.
     */
    int (*zero)(void *ctx, void *file, uint64_t offset, uint64_t len, uint32_t flags);
    /*
     * Optional. Changes what the file holds to mode, AVHDX_IO_UNLOCKED, _LOCK_READ or _LOCK_WRITE, without waiting;
     * -EAGAIN when another open file stands against it. Without it files are not locked.
     */
    int (*lock)(void *ctx, void *file, uint32_t mode);
    /* Optional. Creates a file for reading and writing; -EEXIST if there is one. Needed by create and checkpoint. */
    int (*create)(void *ctx, const char *path, void **file);
    /* Optional. Renames without replacing (-EEXIST). Needed by create and checkpoint. */
    int (*rename)(void *ctx, const char *from, const char *to);
    /* Optional. Removes a name. Needed by merge, unless unlink=off. */
    int (*unlink)(void *ctx, const char *path);
    /*
     * Optional. Makes what create, rename and unlink did in a directory survive power loss. Needed by create,
     * checkpoint and merge, unless unlink=off.
     */
    int (*sync_dir)(void *ctx, const char *dir);
    /*
     * Optional. Calls found with arg and each name (without directories) in dir, until found returns other than 0.
     * Needed by merge, unless relink=off, and to find parents by identity.
     */
    int (*list)(void *ctx, const char *dir, int (*found)(void *arg, const char *name), void *arg);
};
#define AVHDX_IO_OPS_INIT { sizeof(struct avhdx_io_ops), 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL }

/* ---- Open and close ---- */

/*
 * A disk is a leaf and its parents, open as one. Layers have numbers: 0 is the leaf, the last is the base.
 */

/* An open disk. Made by avhdx_open, avhdx_open_chain or avhdx_open_fd, released by avhdx_close or avhdx_abort. */
struct avhdx_disk;

/*
 * Opens the file at path and its parents, by default for reading and writing, the leaf locked against every other
 * program and the parents against writers. Parents are found by the leaf's parent locator, then by name and identity
 * in its directory and in "search"; a file that is not the parent recorded is never used.
 *
 * Keys: those of avhdx_schema_json("open"). Errors: NOT_VHDX, UNSUPPORTED, CORRUPT, CHECKSUM, TRUNCATED,
 * LOG_REPLAY_REQUIRED, PARENT_..., CHAIN_LOOP, LOCKED, ARGUMENT, IO.
 * disk: not NULL, *disk is NULL after a failure; path: not NULL, bytes; opts: may be NULL. Any thread. Since 1.0.
 */
int avhdx_open(avhdx_disk **disk, const char *path, const avhdx_opts *opts);

/*
 * Opens exactly these count files, leaf first, base last. Each must still be the parent of the one before it; with
 * "ignore-id-mismatch" the caller vouches for that instead. Otherwise as avhdx_open.
 * disk: not NULL, *disk is NULL after a failure; paths: not NULL, nor any of its members; opts: may be NULL.
 * Any thread. Since 1.0.
 */
int avhdx_open_chain(avhdx_disk **disk, const char *const *paths, size_t count, const avhdx_opts *opts);

/*
 * Opens a file that is already open as the descriptor fd, which from now on belongs to the library: it is closed with
 * the disk, and also when this call fails. It must be open for reading and writing, or for reading with "read-only".
 * name is its path, for messages and to find its parents, which are opened by name. Otherwise as avhdx_open.
 * disk: not NULL, *disk is NULL after a failure; name: not NULL; opts: may be NULL. Any thread. Since 1.0.
 */
int avhdx_open_fd(avhdx_disk **disk, int fd, const char *name, const avhdx_opts *opts);

/*
 * Makes everything that completed before the call, by any thread, survive power loss. Costs nothing when nothing was
 * written. Errors: IO, NO_SPACE, POISONED. disk: not NULL. Concurrent on one disk. Since 1.0.
 */
int avhdx_flush(avhdx_disk *disk);

/*
 * Makes everything durable, leaves the log empty, unlocks, and frees the disk, also when something fails: the first
 * failure is returned, and the file is then as after a power cut, with everything flushed in it. A job that is not
 * over is cancelled; free it, before or afterwards. No other call on the disk may be running, or begin. From a callback of an operation on the same disk it does nothing and is -EINVAL.
 * Errors: IO, NO_SPACE, POISONED. disk: may be NULL (0). Since 1.0.
 */
int avhdx_close(avhdx_disk *disk);

/*
 * Frees the disk without writing anything more: what was not flushed may be lost, as in a power cut. No other call
 * on the disk may be running, or begin. From a callback of an operation on the same disk it does nothing. disk: may
 * be NULL. Since 1.0.
 */
void avhdx_abort(avhdx_disk *disk);

/* ---- Information ---- */

/*
 * Structures the library fills begin with struct_size: initialise them with the macro that follows each. The library
 * writes no more than that many bytes and zeros what it does not know. GUIDs are 16 bytes as stored in the file.
 */

/* An offset or size that there is none of. */
#define AVHDX_NO_OFFSET UINT64_MAX

/* Type: every block has its place in the file from the start. */
#define AVHDX_TYPE_FIXED 1
/* Type: blocks are allocated when first written. */
#define AVHDX_TYPE_DYNAMIC 2
/* Type: holds what changed since its parent. */
#define AVHDX_TYPE_DIFFERENCING 3
/* Flag of information: the log holds updates that are not in place yet. */
#define AVHDX_INFO_DIRTY_LOG 1
/* Flag of information: writes are refused. */
#define AVHDX_INFO_READ_ONLY 2
/* Flag of information: an interrupted merge was found; avhdx_resume finishes it. */
#define AVHDX_INFO_PENDING_MERGE 4
/* Flag of information: the file has a parent; parent_linkage is set. */
#define AVHDX_INFO_HAS_PARENT 8

/* What one file says about itself. Since 1.0. */
struct avhdx_probe
{
    /* Set by AVHDX_PROBE_INIT. */
    uint32_t struct_size;
    /* AVHDX_TYPE_... */
    uint32_t type;
    /* Bytes of the virtual disk. */
    uint64_t virtual_size;
    /* Bytes of a payload block. */
    uint32_t block_size;
    /* 512 or 4096. */
    uint32_t logical_sector_size;
    /* 512 or 4096. */
    uint32_t physical_sector_size;
    /* AVHDX_INFO_DIRTY_LOG, AVHDX_INFO_HAS_PARENT. */
    uint32_t flags;
    /* SCSI page 83 identity, the same through a chain. */
    uint8_t virtual_disk_id[16];
    /* Identity of the content: what a child records of its parent. */
    uint8_t data_write_guid[16];
    /* The data write GUID its parent must have; zeros without a parent. */
    uint8_t parent_linkage[16];
    /* Another one that its parent may have, after a merge was cut short; else zeros. */
    uint8_t parent_linkage2[16];
};
#define AVHDX_PROBE_INIT { sizeof(struct avhdx_probe), 0, 0, 0, 0, 0, 0, { 0 }, { 0 }, { 0 }, { 0 } }

/* What is efficient. Since 1.0. */
struct avhdx_limits
{
    /* Set by AVHDX_LIMITS_INIT. */
    uint32_t struct_size;
    /* 512 or 4096: what a guest should see. Requests of any alignment work. */
    uint32_t logical_sector_size;
    /* 512 or 4096. */
    uint32_t physical_sector_size;
    /* Bytes of a payload block of the leaf. */
    uint32_t block_size;
    /* Requests aligned to this many bytes are the cheapest. */
    uint32_t preferred;
    /* Discards give back space in units of this many bytes. */
    uint32_t discard_granularity;
};
#define AVHDX_LIMITS_INIT { sizeof(struct avhdx_limits), 0, 0, 0, 0, 0 }

/* A disk: the chain as one. Since 1.0. */
struct avhdx_info
{
    /* Set by AVHDX_INFO_INIT. */
    uint32_t struct_size;
    /* AVHDX_TYPE_... of the leaf. */
    uint32_t type;
    /* Bytes of the virtual disk. */
    uint64_t virtual_size;
    /* Lengths of all files together, in bytes. */
    uint64_t file_size;
    /* Bytes all files take on their file systems; as file_size for those that do not tell. */
    uint64_t actual_size;
    /* Number of layers. */
    uint32_t layer_count;
    /* Bytes of a payload block of the leaf. */
    uint32_t block_size;
    /* 512 or 4096. */
    uint32_t logical_sector_size;
    /* 512 or 4096. */
    uint32_t physical_sector_size;
    /* AVHDX_INFO_... */
    uint32_t flags;
    /* 0. */
    uint32_t reserved;
    /* SCSI page 83 identity. */
    uint8_t virtual_disk_id[16];
};
#define AVHDX_INFO_INIT { sizeof(struct avhdx_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, { 0 } }

/* One file of a chain. Since 1.0. */
struct avhdx_layer_info
{
    /* Set by AVHDX_LAYER_INFO_INIT. */
    uint32_t struct_size;
    /* AVHDX_TYPE_... */
    uint32_t type;
    /* Bytes of the virtual disk as of this layer. */
    uint64_t virtual_size;
    /* Length of the file in bytes. */
    uint64_t file_size;
    /* Bytes it takes on its file system; as file_size where that does not tell. */
    uint64_t actual_size;
    /* Bytes of a payload block. */
    uint32_t block_size;
    /* 512 or 4096. */
    uint32_t logical_sector_size;
    /* 512 or 4096. */
    uint32_t physical_sector_size;
    /* Bytes of log. */
    uint32_t log_size;
    /* AVHDX_INFO_DIRTY_LOG, AVHDX_INFO_HAS_PARENT. */
    uint32_t flags;
    /* 0. */
    uint32_t reserved;
    /* SCSI page 83 identity. */
    uint8_t virtual_disk_id[16];
    /* Changes with every session that writes. */
    uint8_t file_write_guid[16];
    /* Identity of the content. */
    uint8_t data_write_guid[16];
    /* The data write GUID its parent must have; zeros without a parent. */
    uint8_t parent_linkage[16];
    /* The other one accepted while a merge runs; else zeros. */
    uint8_t parent_linkage2[16];
};
#define AVHDX_LAYER_INFO_INIT { sizeof(struct avhdx_layer_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, { 0 }, { 0 }, { 0 }, { 0 }, { 0 } }

/*
 * Tells what the file at path is. Reads less than 1 MiB and the log if that is dirty, opens no parent, takes no lock,
 * writes nothing. Errors: NOT_VHDX, UNSUPPORTED, CORRUPT, CHECKSUM, TRUNCATED, IO.
 * path, probe: not NULL. Any thread. Since 1.0.
 */
int avhdx_probe(const char *path, struct avhdx_probe *probe);

/* The size of the virtual disk in bytes, or a negative errno. disk: not NULL. Concurrent on one disk. Since 1.0. */
int64_t avhdx_get_size(avhdx_disk *disk);

/* Fills limits. disk, limits: not NULL. Concurrent on one disk. Since 1.0. */
int avhdx_get_limits(avhdx_disk *disk, struct avhdx_limits *limits);

/* Fills info. disk, info: not NULL. Concurrent on one disk. Since 1.0. */
int avhdx_get_info(avhdx_disk *disk, struct avhdx_info *info);

/* The number of layers, at least 1. disk: not NULL. Concurrent on one disk. Since 1.0. */
int avhdx_layer_count(avhdx_disk *disk);

/*
 * Fills info for one layer. Errors: ARGUMENT when there is no such layer. disk, info: not NULL.
 * Concurrent on one disk. Since 1.0.
 */
int avhdx_layer_info(avhdx_disk *disk, uint32_t layer, struct avhdx_layer_info *info);

/*
 * The path by which a layer was opened, as bytes. It lives until the disk is closed. NULL, ARGUMENT when there is no
 * such layer. disk: not NULL. Concurrent on one disk. Since 1.0.
 */
const char *avhdx_layer_path(avhdx_disk *disk, uint32_t layer);

/*
 * The descriptor of a layer's file, for a caller that does its own I/O at the file offsets of avhdx_block_status. It
 * belongs to the disk: do not close it, and do not use it after a merge of that layer or after avhdx_close. With
 * cache=none it has O_DIRECT, whose requests must be aligned.
 * Errors: UNSUPPORTED where there is none, or where the file must not be read by itself because its log is dirty;
 * ARGUMENT when there is no such layer. disk: not NULL. Concurrent on one disk. Since 1.0.
 */
int avhdx_layer_fd(avhdx_disk *disk, uint32_t layer);

/*
 * Everything known of the disk and its layers, as JSON; keys that qemu-img has mean the same. Paths that are not
 * UTF-8 are shown with replacement characters. Free it with avhdx_free; NULL on failure. disk: not NULL. Concurrent
 * on one disk. Since 1.0.
 */
char *avhdx_info_json(avhdx_disk *disk);

/* ---- Reading and writing ---- */

/*
 * Offsets and lengths are bytes of the virtual disk, of any alignment; multiples of the logical sector size are
 * cheaper. Every request is done whole or fails. A range that leaves the disk is -EINVAL, code RANGE, and nothing is
 * touched. All of these may be called by any number of threads at once on one disk, also while it is checkpointed or
 * merged. Of two writes to the same sector at the same time, one wins whole. A write is seen by every read that
 * begins after it returned; it survives power loss after avhdx_flush, or with AVHDX_FUA when it returns.
 */

/* avhdx_block_status: ask about layer i alone, 0 to 65535. */
#define AVHDX_THIS_LAYER(i) (UINT32_C(0x100) | ((uint32_t)(i) << 16))

/* The call's own effect survives power loss when it returns. */
#define AVHDX_FUA 1
/* avhdx_zero: space may be given back. */
#define AVHDX_MAY_UNMAP 2
/* avhdx_zero: fail with NOT_FAST, having done nothing, unless changing metadata is enough. */
#define AVHDX_FAST 4
/* avhdx_block_status: one extent is enough. */
#define AVHDX_ONE 8
/* State of an extent: bytes in a file. */
#define AVHDX_STATE_DATA 1
/* State of an extent: explicitly zero. */
#define AVHDX_STATE_ZERO 2
/* State of an extent: no layer provides it; reads as zeros. With AVHDX_THIS_LAYER: as whatever is below. */
#define AVHDX_STATE_HOLE 3
/* State of an extent: trimmed; reads as zeros. */
#define AVHDX_STATE_UNMAPPED 4
/* State of an extent: left undefined by whoever wrote it; reads as zeros. */
#define AVHDX_STATE_UNDEFINED 5

/* A range of the virtual disk with one state. This structure never grows. Since 1.0. */
struct avhdx_extent
{
    /* Where it begins, in bytes. */
    uint64_t offset;
    /* Its bytes. */
    uint64_t length;
    /* AVHDX_STATE_... */
    uint32_t state;
    /* The layer that decides it. */
    uint32_t layer;
    /* Where its bytes are in that layer's file; AVHDX_NO_OFFSET when there are none. */
    uint64_t file_offset;
};

/*
 * Reads the range [offset, offset + count) into buf. On failure other than RANGE parts of buf may have been written.
 * Errors: RANGE, CORRUPT, IO, ... disk: not NULL; buf: not NULL unless count is 0. Concurrent on one disk. Since 1.0.
 */
int avhdx_pread(avhdx_disk *disk, void *buf, size_t count, uint64_t offset);

/*
 * Writes buf to the range [offset, offset + count), into the leaf. flags: AVHDX_FUA.
 * Errors: RANGE, READ_ONLY, NO_SPACE, POISONED, IO, ... disk: not NULL; buf: not NULL unless count is 0.
 * Concurrent on one disk. Since 1.0.
 */
int avhdx_pwrite(avhdx_disk *disk, const void *buf, size_t count, uint64_t offset, uint32_t flags);

/*
 * As avhdx_pread, into iovcnt buffers one after another, which do not overlap. disk: not NULL; iov: not NULL unless
 * iovcnt is 0. Concurrent on one disk. Since 1.0.
 */
int avhdx_preadv(avhdx_disk *disk, const struct iovec *iov, int iovcnt, uint64_t offset);

/*
 * As avhdx_pwrite, from iovcnt buffers one after another. flags: AVHDX_FUA.
 * disk: not NULL; iov: not NULL unless iovcnt is 0. Concurrent on one disk. Since 1.0.
 */
int avhdx_pwritev(avhdx_disk *disk, const struct iovec *iov, int iovcnt, uint64_t offset, uint32_t flags);

/*
 * Reads the disk as of a layer: as it was when the layer's child was made. The range must lie inside that layer's
 * virtual size. Layer 0 is the disk itself. Errors: ARGUMENT when there is no such layer; as avhdx_pread.
 * disk: not NULL; buf: not NULL unless count is 0. Concurrent on one disk. Since 1.0.
 */
int avhdx_layer_pread(avhdx_disk *disk, uint32_t layer, void *buf, size_t count, uint64_t offset);

/*
 * Makes the range [offset, offset + len) read as zeros, whatever parents hold there. flags: AVHDX_FUA,
 * AVHDX_MAY_UNMAP, AVHDX_FAST. Errors: NOT_FAST (-ENOTSUP), RANGE, READ_ONLY, NO_SPACE, POISONED, IO. disk: not
 * NULL. Concurrent on one disk. Since 1.0.
 */
int avhdx_zero(avhdx_disk *disk, uint64_t offset, uint64_t len, uint32_t flags);

/*
 * Says that the content of the range is not needed. Whole blocks in it give their space back and read as zeros, never
 * as a parent's older data; the rest stays as it is. flags: AVHDX_FUA. Errors: RANGE, READ_ONLY, POISONED, IO.
 * disk: not NULL. Concurrent on one disk. Since 1.0.
 */
int avhdx_discard(avhdx_disk *disk, uint64_t offset, uint64_t len, uint32_t flags);

/*
 * Tells what is where in [offset, offset + len): up to *n extents, in order, without gaps, the first at offset.
 * On success *n is their number and *processed the bytes they cover, less than len when there are more: go on at
 * offset + *processed. The answer is about this moment; other threads may write meanwhile.
 *
 * flags: AVHDX_ONE; AVHDX_THIS_LAYER(i) asks about one file instead of the disk, where a range it does not hold is
 * AVHDX_STATE_HOLE. layer and file_offset let a caller do the I/O itself (avhdx_layer_fd).
 * Errors: RANGE, ARGUMENT, CORRUPT, IO. disk, extents, n, processed: not NULL; *n: at least 1.
 * Concurrent on one disk. Since 1.0.
 */
int avhdx_block_status(avhdx_disk *disk,
                       uint64_t offset,
                       uint64_t len,
                       uint32_t flags,
                       struct avhdx_extent *extents,
                       size_t *n,
                       uint64_t *processed);

/* ---- Create, checkpoint, merge, check ---- */

/*
 * Operations on one disk wait for each other; reading and writing go on meanwhile, from other threads. Each is
 * durable when it returns 0. Cut short anywhere, by failure, cancellation or power loss, it leaves files that open
 * and read the same, and running it again finishes it.
 */

/* Severity: legal and worth knowing. */
#define AVHDX_SEVERITY_NOTE 1
/* Severity: other programs may refuse the file. */
#define AVHDX_SEVERITY_WARNING 2
/* Severity: a rule of the format is broken. */
#define AVHDX_SEVERITY_ERROR 3

/* What avhdx_check saw. Since 1.0. */
struct avhdx_check
{
    /* Set by AVHDX_CHECK_INIT. */
    uint32_t struct_size;
    /* 0. */
    uint32_t reserved;
    /* Broken rules. */
    uint64_t errors;
    /* What other programs may refuse. */
    uint64_t warnings;
    /* What is legal and worth knowing. */
    uint64_t notes;
    /* Payload blocks that have space in the file. */
    uint64_t allocated_blocks;
    /* Payload blocks of the disk. */
    uint64_t total_blocks;
    /* Bytes of the file that nothing owns. */
    uint64_t leaked_bytes;
};
#define AVHDX_CHECK_INIT { sizeof(struct avhdx_check), 0, 0, 0, 0, 0, 0, 0 }

/* One finding of avhdx_check or avhdx_repair. Strings are UTF-8 and live for the call of the callback. Since 1.0. */
struct avhdx_issue
{
    /* Bytes of this structure that the library filled. */
    uint32_t struct_size;
    /* AVHDX_SEVERITY_... */
    uint32_t severity;
    /* Where in the file, in bytes. */
    uint64_t offset;
    /* The rule's name, one word: "BatOffset". */
    const char *rule;
    /* The structure, in the words of the specification: "BAT entry 17". */
    const char *structure;
    /* What the file holds. */
    const char *found;
    /* What the rule asks for. */
    const char *wanted;
    /* All of it in one line. */
    const char *message;
    /* 1 when avhdx_repair mended it or, with "dry-run", can; else 0. */
    uint32_t repaired;
    /* 0. */
    uint32_t reserved;
};

/* Receives findings as they are made. Since 1.0. */
struct avhdx_issue_cb
{
    /* Not NULL. */
    void (*fn)(void *user, const struct avhdx_issue *issue);
    /* Passed to fn. */
    void *user;
    /* Called once with user; may be NULL. */
    void (*free)(void *user);
};

/*
 * Creates a virtual disk at path: "type" dynamic, fixed or differencing, "size", "parent" and so on. It is made
 * under a temporary name in the same directory and renamed when complete, so a file of this name is either absent or
 * whole; an existing file is never replaced (-EEXIST). Durable on return.
 *
 * Keys: those of "create", and of "open" for how a parent is opened. Errors: ARGUMENT, NO_SPACE, IO, and those of
 * avhdx_open for the parent. path: not NULL; opts: may be NULL, but "size" or "parent" is needed. Any thread. Since
 * 1.0.
 */
int avhdx_create(const char *path, const avhdx_opts *opts);

/*
 * Seals the leaf and goes on writing to a new differencing child at new_leaf, which must not exist. Reads go on;
 * writes wait for a few flushes, whatever the size of the disk. Layer numbers grow by one: the old leaf is layer 1.
 * On return the child is durable and the old leaf is as if closed. After a failure the disk goes on as before.
 *
 * Keys: those of "checkpoint". Errors: READ_ONLY, CHAIN_LOOP (too many layers), NO_SPACE, IO, POISONED.
 * disk, new_leaf: not NULL; opts: may be NULL. Waits for other operations on the disk. Since 1.0.
 */
int avhdx_checkpoint(avhdx_disk *disk, const char *new_leaf, const avhdx_opts *opts);

/*
 * Folds layers top to base - 1 into layer base (0 = leaf), in one pass in which each sector moves at most once. The
 * disk reads the same before, during and after. On return the chain goes on without the merged layers, and their
 * files are removed unless unlink=off. top may be 0: the disk then goes on writing to the base.
 *
 * Keys: those of "merge". Errors: ARGUMENT, READ_ONLY, HAS_CHILDREN and NO_SPACE (both before the first byte is
 * written), LOCKED, CANCELLED, IO, POISONED; after any of them the disk can be used and the merge run again.
 * disk: not NULL; opts, progress: may be NULL. Waits for other operations on the disk. Since 1.0.
 */
int avhdx_merge(avhdx_disk *disk,
                uint32_t top,
                uint32_t base,
                const avhdx_opts *opts,
                const avhdx_progress_cb *progress);

/*
 * Opens the disk at child, merges it, and what is between, into the ancestor at dest, and closes it: the shape of
 * Merge-VHD. dest NULL is the direct parent. Otherwise as avhdx_merge with top 0.
 *
 * Keys: those of "merge" and of "open". Errors: those of avhdx_open and avhdx_merge; ARGUMENT when dest is no
 * ancestor. child: not NULL; dest, opts, progress: may be NULL. Any thread. Since 1.0.
 */
int avhdx_merge_path(const char *child, const char *dest, const avhdx_opts *opts, const avhdx_progress_cb *progress);

/*
 * Checks every structural rule of the file at path. Parents are not opened, and nothing is ever written. Returns 0
 * when the check was done, whatever it found: look at check->errors. Each finding goes to callback as it is made.
 *
 * Keys: those of "check" and of "open". Errors: NOT_VHDX, LOCKED, IO, ARGUMENT.
 * path, check: not NULL; opts, callback: may be NULL. Any thread. Since 1.0.
 */
int avhdx_check(const char *path, const avhdx_opts *opts, struct avhdx_check *check, const avhdx_issue_cb *callback);

/* ---- Chain surgery ---- */

/*
 * Going back to a checkpoint, deleting one, and changing what a disk depends on. What every disk that is kept reads as
 * stays the same, and so do the identities of the files: disks made on them remain valid. Durable when they return 0.
 * Cut short anywhere, by failure, cancellation or power loss, they leave disks that open and read the same, and running
 * them again finishes.
 */

/*
 * Goes back to the disk as of layer (1 is the parent of the leaf): continues on a new differencing child of it at
 * new_leaf, which must not exist. What was written since is left behind in the old leaf, a complete file that can be
 * opened as a disk of its own; with "unlink" on it is removed, and the layers between, as far as no other disk depends
 * on them and no other program uses them. Reads and writes may go on: after the return they see the old state, and the
 * size the disk had then. The new leaf is layer 0, and layer becomes layer 1. After a failure before the switch the disk
 * goes on as before.
 *
 * Keys: those of "revert". Errors: ARGUMENT, READ_ONLY, NO_SPACE, IO, POISONED.
 * disk, new_leaf: not NULL; opts: may be NULL. Waits for other operations on the disk. Since 1.0.
 */
int avhdx_revert(avhdx_disk *disk, uint32_t layer, const char *new_leaf, const avhdx_opts *opts);

/*
 * Deletes the file of a layer, neither the leaf (0) nor the base. Its content goes into its parent or, where other disks
 * depend on the parent, into each of its children, and these get its parent as theirs: those in the chain, and those
 * found in the directories of the files and in "search". All of them read the same before, during and after; the disk
 * may be read and written meanwhile. "into" chooses: with "parent", the parent's file then holds what the layer held,
 * and its own state is gone; with "children" the parent is not touched, and the layer's state is gone.
 *
 * Keys: those of "delete". Errors: ARGUMENT, READ_ONLY; HAS_CHILDREN (into=parent), LOCKED and NO_SPACE, all before the
 * first byte is written; CANCELLED, IO, POISONED; after any of them the disk can be used and the deletion run again.
 * disk: not NULL; opts, progress: may be NULL. Waits for other operations on the disk. Since 1.0.
 */
int avhdx_delete_layer(avhdx_disk *disk, uint32_t layer, const avhdx_opts *opts, const avhdx_progress_cb *progress);

/*
 * Deletes a branch beside the open chain: the differencing disk at root and every disk that descends from it, found in
 * its directory, those of the chain and "search". Their content is gone. Refused before the first removal when the open
 * disk is among them or depends on them (HAS_CHILDREN), when another program uses one of them (LOCKED), and when a copy
 * of one makes it unclear whose child a disk is (HAS_CHILDREN). A cut leaves a smaller branch that can be opened.
 *
 * Errors: besides those, ARGUMENT (root has no parent), READ_ONLY, IO. disk, root: not NULL. Waits for other operations
 * on the disk. Since 1.0.
 */
int avhdx_delete_branch(avhdx_disk *disk, const char *root);

/*
 * Makes the file at parent the parent of the differencing disk at child, which is not open: Set-VHD -ParentPath. Only the
 * child's parent locator changes, in one step. The parent must be the disk the child was made on, by its data write
 * GUID, wherever it is now; with "ignore-id-mismatch" on another one is accepted, whose content the caller knows to be
 * the same: if it is not, the disk is garbage. What that waived is logged as a warning, with both GUIDs.
 *
 * Keys: those of "reparent" and of "open". Errors: PARENT_ID_MISMATCH (the message has both GUIDs), PARENT_MISMATCH
 * (logical sector size; never waived), CHAIN_LOOP (the parent depends on the child), ARGUMENT (the child has no parent),
 * LOCKED, and those of avhdx_open for both files. child, parent: not NULL; opts: may be NULL. Any thread. Since 1.0.
 */
int avhdx_reparent(const char *child, const char *parent, const avhdx_opts *opts);

/*
 * Puts the leaf on another parent, any disk with the same logical sector size, and copies into the leaf what the new
 * parent does not hold: the disk reads the same before, during and after, and may be used meanwhile. Only the leaf is
 * written. On return the layers below it are new_parent and its parents. Progress counts bytes compared.
 *
 * Keys: those of "rebase". Errors: ARGUMENT (the disk has no parent), READ_ONLY, PARENT_MISMATCH (sector size),
 * CHAIN_LOOP, those of avhdx_open for the new parent; CANCELLED, NO_SPACE, IO, POISONED, after which the disk is on its
 * old parent. disk, new_parent: not NULL; opts, progress: may be NULL. Waits for other operations on the disk. Since 1.0.
 */
int avhdx_rebase(avhdx_disk *disk, const char *new_parent, const avhdx_opts *opts, const avhdx_progress_cb *progress);

/*
 * Makes the leaf a dynamic disk without parent, in its own file: copies into it what it has from its parents. The disk
 * reads the same before, during and after, and may be used meanwhile; writes wait for a moment at the end. On return it
 * has one layer; the parents are as they were.
 *
 * Keys: those of "detach". Errors: ARGUMENT (it has no parent), READ_ONLY, NO_SPACE (before the first byte is written);
 * CANCELLED, IO, POISONED, after which the disk still has its parent. disk: not NULL; opts, progress: may be NULL. Waits
 * for other operations on the disk. Since 1.0.
 */
int avhdx_detach(avhdx_disk *disk, const avhdx_opts *opts, const avhdx_progress_cb *progress);

/* ---- Compact, resize, metadata items ---- */

/*
 * Changes of the leaf's file. Each is durable when it returns, and whole or not there at all after a power cut. Reading
 * goes on meanwhile; operations on one disk wait for each other.
 */

/* avhdx_meta_set: the item belongs to the virtual disk, so checkpoints inherit it; without it, to the one file. */
#define AVHDX_META_DISK 1

/*
 * Makes the leaf's file as short as it can be; the disk reads the same, before, during and after, and may be read and
 * written meanwhile. Blocks that read as zeros, and space of trimmed blocks, are given up; blocks move from the end of
 * the file into the holes; the file is cut. Files that depend on it stay valid. It takes no more space than the log.
 *
 * Keys: those of "compact". Errors: READ_ONLY, UNSUPPORTED (a fixed disk), CANCELLED, IO, POISONED; after any of them
 * the disk reads the same, and running it again goes on. disk: not NULL; opts, progress: may be NULL. Since 1.0.
 */
int avhdx_compact(avhdx_disk *disk, const avhdx_opts *opts, const avhdx_progress_cb *progress);

/*
 * Changes the size of the disk to size bytes, a multiple of the logical sector size, at most 64 TiB. What it gains
 * reads as zeros. It is not cut below avhdx_min_size unless unsafe=on. The copy of a GPT at the old end is gone after
 * shrinking; the guest writes it anew, as after Resize-VHD. Writes wait meanwhile.
 *
 * Keys: those of "resize". Errors: ARGUMENT, READ_ONLY, SHRINK_UNSAFE, HAS_CHILDREN (other files depend on the leaf),
 * NO_SPACE, IO, POISONED. disk: not NULL; opts: may be NULL. Since 1.0.
 */
int avhdx_resize(avhdx_disk *disk, uint64_t size, const avhdx_opts *opts);

/*
 * Finds the smallest size in bytes that avhdx_resize accepts: the end of the last partition (MBR, GPT) and, of a GPT,
 * room for its copy; of a disk without partitions, the end of the last byte that is not zero. Writes wait meanwhile.
 * Errors: SHRINK_UNSAFE (a partition table that cannot be understood), IO. disk, size: not NULL. Since 1.0.
 */
int avhdx_min_size(avhdx_disk *disk, uint64_t *size);

/*
 * Sets the physical sector size that the disk reports: 512 or 4096. Errors: ARGUMENT, READ_ONLY, HAS_CHILDREN, IO,
 * POISONED. disk: not NULL. Writes wait meanwhile. Since 1.0.
 */
int avhdx_set_physical_sector_size(avhdx_disk *disk, uint32_t size);

/*
 * Gives the disk another identity as a guest sees it (SCSI page 83): the 16 bytes at id, as avhdx_info has them, or
 * random ones. Errors: ARGUMENT (all zero), READ_ONLY, HAS_CHILDREN, IO, POISONED. disk: not NULL; id: NULL for a
 * random one. Writes wait meanwhile. Since 1.0.
 */
int avhdx_reset_disk_id(avhdx_disk *disk, const uint8_t *id);

/*
 * Lists the users' metadata items of the leaf as a JSON array of {"id": GUID, "length": bytes, "of-disk": bool}. Free
 * it with avhdx_free. NULL on failure. disk: not NULL. Since 1.0.
 */
char *avhdx_meta_list(avhdx_disk *disk);

/*
 * Copies up to len bytes of the metadata item with the 16 bytes of id, in the order of the file, to buf, and returns
 * the item's length, which may be more. Errors: ARGUMENT (no such item), IO. disk, id: not NULL; buf: not NULL unless
 * len is 0. Since 1.0.
 */
int64_t avhdx_meta_get(avhdx_disk *disk, const uint8_t *id, void *buf, size_t len);

/*
 * Adds a metadata item to the leaf, or replaces the one with this id. At most 1024 items, of at most 1 MiB each and 40
 * MiB together. flags: AVHDX_META_DISK. Errors: ARGUMENT, READ_ONLY, HAS_CHILDREN (an item of the disk, and other
 * files depend on the leaf), NO_SPACE, IO, POISONED. disk, id: not NULL; buf: not NULL unless len is 0. Writes wait
 * meanwhile. Since 1.0.
 */
int avhdx_meta_set(avhdx_disk *disk, const uint8_t *id, const void *buf, size_t len, uint32_t flags);

/*
 * Removes a metadata item of the leaf. Errors: ARGUMENT (no such item), READ_ONLY, HAS_CHILDREN, IO, POISONED. disk,
 * id: not NULL. Writes wait meanwhile. Since 1.0.
 */
int avhdx_meta_delete(avhdx_disk *disk, const uint8_t *id);

/* ---- Convert, migrate ---- */

/*
 * Both write new files, under temporary names that become the real ones when all is complete and durable: a file of
 * the name asked for is either absent or whole. Existing files are never replaced, and sources never changed. After a
 * failure or a cancellation nothing is left of it. What nobody stores is not read.
 *
 * With mode=copy all that is stored is read, and zeros are not stored. With mode=auto extents are shared instead where the
 * file system can, at next to no cost in time and space, zeros that are stored among them. Copied are: of each 4 MiB of
 * the disk, pieces of less than 64 KiB; what does not lie at whole pages; files whose log is applied in memory alone;
 * fixed disks; and the leaf of a disk that is open for writing, which would go to new places when it is written: open it
 * read-only, or take a checkpoint and convert layer 1. With mode=reflink fixed disks are shared, too, and what else cannot
 * be shared, but for such pieces, is a failure. With "threads" the reading is theirs, with 4 MiB of memory for each and
 * for two more, twice that with "parent".
 */

/*
 * Writes what the disk reads as to a new file at dst: "to" raw, vhdx or vhd, "type" dynamic or fixed. With "layer" it
 * is the disk as of that layer, and with "parent" a differencing disk on another one, holding only the sectors that
 * differ. The new disk has the size, the virtual disk ID and (VHDX) the sector sizes and metadata items of this one;
 * with "parent" the parent's ID. Writes to the disk during the call may or may not be in the result. Durable on
 * return.
 *
 * Keys: those of "convert". Errors: ARGUMENT (what does not go together; a VHD holds at most 2040 GiB), IO with EEXIST,
 * NO_SPACE, CANCELLED, PARENT_MISMATCH (sectors of another size), UNSUPPORTED (mode=reflink where sharing is not possible),
 * and those of avhdx_open for "parent".
 * disk, dst: not NULL; opts, progress: may be NULL. Waits for other operations on the disk. Since 1.0.
 */
int avhdx_convert(avhdx_disk *disk, const char *dst, const avhdx_opts *opts, const avhdx_progress_cb *progress);

/*
 * Writes the VHD or AVHD at src, and its parents, as a new VHDX at dst that holds everything; or, with "chain", one
 * VHDX for each file, dst for the leaf, and beside it one for each parent, with the parent's name and the suffix
 * .vhdx, .avhdx where it has a parent itself. Parents are found as avhdx_open finds those of a VHDX: the files' own
 * paths, "drive-map", "search", beneath "parent-root", and taken when their unique ID is right. The virtual disk ID
 * is the unique ID of the base. Sectors are of 512 bytes. A VHD whose last sector is damaged is read by the copy of
 * it. Durable on return.
 *
 * Keys: those of "migrate", of "convert" (not "layer" and "parent"), and of "open". Errors: NOT_VHDX (it is no VHD
 * either), CORRUPT, CHECKSUM, TRUNCATED, UNSUPPORTED, those of avhdx_open for parents, and those of avhdx_convert.
 * src, dst: not NULL; opts, progress: may be NULL. Any thread. Since 1.0.
 */
int avhdx_migrate(const char *src, const char *dst, const avhdx_opts *opts, const avhdx_progress_cb *progress);

/* ---- Differences and checksums ---- */

/*
 * What changed between two points of a chain, for incremental backup; whether two disks read the same; the checksum of
 * what a disk reads as. They read only. They wait for operations that change the layers of the disk; reading and writing
 * go on meanwhile, so what they say of a leaf that is written is about the moments at which they looked.
 */

/* avhdx_diff: read both points and tell only sectors whose bytes differ. */
#define AVHDX_EXACT 16
/* avhdx_compare: disks of different sizes differ, even if what the larger one has more is zeros. */
#define AVHDX_STRICT 32

/*
 * Tells what differs in [offset, offset + len) between the disk as of layer newer and as of layer older (newer <
 * older; 0 is the leaf): up to *n ranges, ascending, not overlapping, with gaps where both read the same. On success
 * *n is their number and *processed the bytes dealt with, less than len when there are more: go on at offset +
 * *processed.
 *
 * state is AVHDX_STATE_DATA, to be read with avhdx_layer_pread from newer, or AVHDX_STATE_ZERO: reads as zeros there.
 * layer is newer and file_offset AVHDX_NO_OFFSET. The range asked for must lie in the disk as of newer; where the disk
 * as of older is shorter it counts as zeros. The ranges are those that layers newer to older - 1 hold, found from
 * metadata alone, so one may hold what it held before. flags: AVHDX_EXACT reads and compares, and tells sectors.
 *
 * Errors: RANGE, ARGUMENT, CORRUPT, IO. disk, extents, n, processed: not NULL; *n: at least 1.
 * Waits for other operations on the disk. Since 1.0.
 */
int avhdx_diff(avhdx_disk *disk,
               uint32_t newer,
               uint32_t older,
               uint64_t offset,
               uint64_t len,
               uint32_t flags,
               struct avhdx_extent *extents,
               size_t *n,
               uint64_t *processed);

/*
 * Compares what two disks read as. 0: equal; 1: different, and *first_difference is the offset of the first byte that
 * differs. Of different sizes, the part that only the larger disk has must read as zeros; with AVHDX_STRICT the sizes
 * must be equal too, and the first difference is where the smaller disk ends if there is none before. What both have
 * in the same place of the same file, and what is zero in both, is not read. a and b may be the same disk.
 *
 * Keys: those of "compare". Errors: ARGUMENT, CANCELLED, CORRUPT, IO. flags: AVHDX_STRICT.
 * a, b: not NULL; first_difference, opts, progress: may be NULL. Waits for other operations on both disks. Since 1.0.
 */
int avhdx_compare(avhdx_disk *a,
                  avhdx_disk *b,
                  uint32_t flags,
                  uint64_t *first_difference,
                  const avhdx_opts *opts,
                  const avhdx_progress_cb *progress);

/*
 * Computes the checksum of what the disk reads as, as of a layer (0 is the disk itself): that of a raw copy of it.
 * algo is "sha256" (32 bytes) or "sha512" (64). On entry *len is the room at out, which must be enough; on success it is
 * the length of the checksum. What reads as zeros is not read, but takes part: a disk of many TiB takes its time.
 *
 * Keys: those of "digest". Errors: ARGUMENT, CANCELLED, CORRUPT, IO. disk, algo, out, len: not NULL; opts, progress: may be NULL.
 * Waits for other operations on the disk. Since 1.0.
 */
int avhdx_digest(avhdx_disk *disk,
                 uint32_t layer,
                 const char *algo,
                 uint8_t *out,
                 size_t *len,
                 const avhdx_opts *opts,
                 const avhdx_progress_cb *progress);

/* ---- Trees of files ---- */

/*
 * Who is whose parent among the files of whole directories, by identity, wherever they lie. The front of each file is
 * read and nothing else; no lock is taken and nothing written, so files in use are fine. A tree is a picture of one
 * moment and does not change; any number of threads may look at it.
 */

/* No node: the parent of one without parent. */
#define AVHDX_NO_NODE 4294967295
/* Role: neither parent nor children. */
#define AVHDX_ROLE_DISK 1
/* Role: no parent, but children. */
#define AVHDX_ROLE_BASE 2
/* Role: a parent and children. */
#define AVHDX_ROLE_CHECKPOINT 3
/* Role: a parent and no children. */
#define AVHDX_ROLE_LEAF 4
/* Role: a differencing disk whose parent is missing. */
#define AVHDX_ROLE_ORPHAN 5
/* Role: a VHD Set (.vhds), told by its name and not looked into. */
#define AVHDX_ROLE_SET 6
/* Role: cannot be read as what it says it is. */
#define AVHDX_ROLE_BROKEN 7
/* Problem: no file has the identity recorded of the parent. */
#define AVHDX_PROBLEM_MISSING_PARENT 1
/* Problem: the file where the parent should be is another disk or was modified. */
#define AVHDX_PROBLEM_PARENT_MODIFIED 2
/* Problem: a merge into the parent was cut short; avhdx_resume finishes it. */
#define AVHDX_PROBLEM_INTERRUPTED_MERGE 4
/* Problem: the paths recorded do not lead to the parent; avhdx_tree_fix records others. */
#define AVHDX_PROBLEM_STALE_PATH 8
/* Problem: another file has the same identity. */
#define AVHDX_PROBLEM_DUPLICATE 16
/* Problem: the file cannot be read as a VHDX. */
#define AVHDX_PROBLEM_BROKEN 32
/* Problem: the parents of the file lead back to it. */
#define AVHDX_PROBLEM_LOOP 64

/* Files and how they hang together. Made by avhdx_tree_scan, freed by avhdx_tree_free. */
struct avhdx_tree;

/* A file of a tree. Since 1.0. */
struct avhdx_tree_node
{
    /* Set by AVHDX_TREE_NODE_INIT. */
    uint32_t struct_size;
    /* AVHDX_ROLE_... */
    uint32_t role;
    /* AVHDX_TYPE_..., 0 when it could not be read. */
    uint32_t type;
    /* AVHDX_INFO_DIRTY_LOG, AVHDX_INFO_HAS_PARENT. */
    uint32_t flags;
    /* AVHDX_PROBLEM_... of the file, any number of them. */
    uint32_t problems;
    /* Its parent; AVHDX_NO_NODE without one, or when that is missing. */
    uint32_t parent;
    /* Number of its children. */
    uint32_t child_count;
    /* Number of files it consists of: 1 and its parents. */
    uint32_t depth;
    /* Bytes of the virtual disk. */
    uint64_t virtual_size;
    /* Length of the file in bytes. */
    uint64_t file_size;
    /* Bytes it takes on its file system; as file_size where that does not tell. */
    uint64_t actual_size;
    /* When it was last written, in seconds since 1970; 0 where that is not known. */
    uint64_t modified;
    /* SCSI page 83 identity, the same through a chain. */
    uint8_t virtual_disk_id[16];
    /* Identity of the content: what a child records of its parent. */
    uint8_t data_write_guid[16];
    /* The data write GUID its parent must have; zeros without a parent. */
    uint8_t parent_linkage[16];
};
#define AVHDX_TREE_NODE_INIT { sizeof(struct avhdx_tree_node), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, { 0 }, { 0 }, { 0 } }

/*
 * Scans count directories, and the directories in them; files may be named too. Links inside them are not followed. A
 * parent elsewhere is found when a recorded path leads to it. A file that cannot be read is a node, not an error.
 *
 * Keys: those of "tree", and of "open" for drive-map and parent-root. Errors: ARGUMENT; IO when one of dirs itself
 * cannot be read. tree: not NULL, *tree is NULL after a failure; dirs: not NULL, nor any of its members; opts: may be
 * NULL. Any thread. Since 1.0.
 */
int avhdx_tree_scan(avhdx_tree **tree, const char *const *dirs, size_t count, const avhdx_opts *opts);

/*
 * The number of files in the tree. Their numbers are 0 to that less 1, in the order of their paths. tree: not NULL. Any
 * thread. Since 1.0.
 */
int64_t avhdx_tree_count(const avhdx_tree *tree);

/* Tells what a node is. Errors: ARGUMENT when there is no such node. tree, node: not NULL. Any thread. Since 1.0. */
int avhdx_tree_node(const avhdx_tree *tree, uint32_t index, struct avhdx_tree_node *node);

/*
 * The path of a node's file, bytes; it lives with the tree. NULL when there is no such node. tree: not NULL. Any thread.
 * Since 1.0.
 */
const char *avhdx_tree_path(const avhdx_tree *tree, uint32_t index);

/*
 * Tells the children of a node, or, for AVHDX_NO_NODE, the nodes without parent. On entry *n is the room at children;
 * on success it is their number, of which as many as there was room for are written: ask with *n 0 first, or use
 * child_count. Errors: ARGUMENT when there is no such node. tree, n: not NULL; children: not NULL unless *n is 0.
 * Any thread. Since 1.0.
 */
int avhdx_tree_children(const avhdx_tree *tree, uint32_t index, uint32_t *children, size_t *n);

/*
 * The number of the node whose file is at path, by whatever path or link that leads to it; -ENOENT when the file is none
 * of the tree. tree, path: not NULL. Any thread. Since 1.0.
 */
int64_t avhdx_tree_find(const avhdx_tree *tree, const char *path);

/*
 * The whole tree as JSON: nodes with their paths, roles, sizes, identities, parents, children and problems in words;
 * unreadable; other-files; truncated. Free it with avhdx_free. NULL after a failure. tree: not NULL. Any thread. Since
 * 1.0.
 */
char *avhdx_tree_json(const avhdx_tree *tree);

/*
 * Records anew, in the file of a node with AVHDX_PROBLEM_STALE_PATH, where its parent is: 1 when that is done and
 * durable, 0 when its paths are good, or lead nowhere because it has no parent in the tree. Only the parent locator of
 * the file changes, and no identity. Both files are looked at again first: one that changed since the scan is left
 * alone (PARENT_ID_MISMATCH). The tree stays as it was; scan again to see. The options are those of the scan.
 *
 * Errors: ARGUMENT when there is no such node; READ_ONLY (scanned with "read-only"), LOCKED, PARENT_ID_MISMATCH, NO_SPACE,
 * IO, and those of avhdx_open. tree: not NULL. Any thread. Since 1.0.
 */
int avhdx_tree_fix(const avhdx_tree *tree, uint32_t index);

/* Frees a tree and the paths it gave out. tree: may be NULL. Since 1.0. */
void avhdx_tree_free(avhdx_tree *tree);

/* ---- Jobs ---- */

/*
 * A long operation in steps, for an event loop, a rate limit or a cancel button. A job does nothing between steps; the
 * disk can be read and written meanwhile, and a power cut then loses as little as at any other moment. While a job is
 * neither done nor freed, other operations on its disk are refused (PENDING_OPERATION).
 *
 * The operation has a thread of its own, which runs only while a step waits for it: I/O callbacks are called there.
 * With the key threads there are more, which finish what they have begun when a step returns.
 */

/* An operation in steps. Made by avhdx_job_new, released by avhdx_job_free. */
struct avhdx_job;

/* How far a job is. Since 1.0. */
struct avhdx_progress
{
    /* Set by AVHDX_PROGRESS_INIT. */
    uint32_t struct_size;
    /* 0. */
    uint32_t reserved;
    /* Bytes dealt with. */
    uint64_t done;
    /* Bytes to deal with, as far as known; never shrinks below done. */
    uint64_t total;
};
#define AVHDX_PROGRESS_INIT { sizeof(struct avhdx_progress), 0, 0, 0 }

/*
 * Prepares an operation on a disk; nothing happens before the first step. operation is one of these, each with the keys
 * of its function, and those of "job" named here for what its function takes as arguments:
 *
 * "merge" (avhdx_merge): "top" and "base"; "delete" (avhdx_delete_layer): "top", the layer deleted; "rebase"
 * (avhdx_rebase): "onto", the new parent; "detach" (avhdx_detach); "convert" (avhdx_convert): "out", the new file;
 * "compact" (avhdx_compact); "digest" (avhdx_digest): "top", the layer, and "algorithm".
 *
 * Keys: those of the operation and of "job". Errors: ARGUMENT; PENDING_OPERATION when the disk has a job that is not
 * over. job: not NULL, *job is NULL after a failure; disk, operation: not NULL; opts: may be NULL where the operation
 * needs no key. The job must be over or freed before the disk is closed; avhdx_close cancels it otherwise. Since 1.0.
 */
int avhdx_job_new(avhdx_job **job, avhdx_disk *disk, const char *operation, const avhdx_opts *opts);

/*
 * Goes on for about max_bytes, at least up to the next moment at which the operation can stand still. Returns 1 when
 * there is more to do and 0 when it is done and durable. A failure of the operation is returned by the step in which
 * it happens and by each later one; CANCELLED after avhdx_job_cancel.
 * job: not NULL; progress: may be NULL. Steps from several threads take turns. Since 1.0.
 */
int avhdx_job_step(avhdx_job *job, uint64_t max_bytes, struct avhdx_progress *progress);

/* Tells how far a job is, also while another thread steps it. job, progress: not NULL. Any thread. Since 1.0. */
int avhdx_job_progress(avhdx_job *job, struct avhdx_progress *progress);

/*
 * What a job that is done reports, as a JSON object: "merge" bytes, reflinked, relinked, removed and target; "delete" bytes,
 * into-children, relinked and removed; "rebase" and "detach" bytes; "convert" format, virtual-size, file-size and reflinked;
 * "compact" what avhdx_compact counts; "digest" algorithm and digest, in hexadecimal. Free it with avhdx_free. NULL for a
 * failure: ARGUMENT when it is not done. job: not NULL. Any thread. Since 1.0.
 */
char *avhdx_job_report_json(avhdx_job *job);

/*
 * Asks a job to end: the step that runs, or the next one, returns CANCELLED, unless it was done before. The disk reads
 * the same, and the operation run again goes on. job: not NULL. Any thread. Since 1.0.
 */
int avhdx_job_cancel(avhdx_job *job);

/*
 * Cancels a job that is not over, waits until it holds nothing any more, and frees it. No other call on the job may
 * be running, or begin. job: may be NULL. Since 1.0.
 */
void avhdx_job_free(avhdx_job *job);

/* ---- Interrupted operations ---- */

/*
 * A merge that was cut by a failure, cancellation or power loss leaves a disk that reads the same, and notes in its
 * files what was asked for. Other operations leave nothing to finish: they are run again or not.
 */

/* Nothing is pending. */
#define AVHDX_PENDING_NONE 0
/* A merge whose layers are still in the chain. */
#define AVHDX_PENDING_MERGE 1
/* A merge that is complete, and left files behind that nobody needs. */
#define AVHDX_PENDING_TIDYING 2

/* An interrupted operation. Since 1.0. */
struct avhdx_pending
{
    /* Set by AVHDX_PENDING_INIT. */
    uint32_t struct_size;
    /* AVHDX_PENDING_NONE, AVHDX_PENDING_MERGE or AVHDX_PENDING_TIDYING. */
    uint32_t stage;
    /* The uppermost layer to be merged, 0 = leaf; when tidying, the layer that stays above the base. */
    uint32_t top;
    /* The layer merged into. */
    uint32_t base;
};
#define AVHDX_PENDING_INIT { sizeof(struct avhdx_pending), 0, 0, 0 }

/*
 * Tells whether a merge in the chain whose leaf is at path was interrupted, and which; of several, the lowest. Nothing
 * is written. Where another program began it, only the layer directly above the base is known to have been meant.
 *
 * Keys: those of "open". Errors: those of avhdx_open. path, pending: not NULL; opts: may be NULL. Any thread. Since 1.0.
 */
int avhdx_pending(const char *path, const avhdx_opts *opts, struct avhdx_pending *pending);

/*
 * Finishes every interrupted merge of the chain whose leaf is at path, which is not open, the way it was asked for:
 * the same layers, their files removed or kept. Returns 1 when something was finished and is durable, 0 when nothing was
 * pending. Where the leaf itself was to be merged, its file is gone and the base is the disk.
 *
 * Keys: those of "merge" and of "open"; "unlink" cannot remove what was to be kept. Errors: those of avhdx_open and
 * avhdx_merge; run it again after any of them. path: not NULL; opts, progress: may be NULL. Any thread. Since 1.0.
 */
int avhdx_resume(const char *path, const avhdx_opts *opts, const avhdx_progress_cb *progress);

/* ---- Plans ---- */

/*
 * What an operation would do, without doing it. It is rehearsed with the code that does it, on files that only seem to
 * change.
 */

/* Flag of a plan: there is room for bytes where the leaf is. */
#define AVHDX_PLAN_FITS 1

/* What an operation would do. Since 1.0. */
struct avhdx_plan
{
    /* Set by AVHDX_PLAN_INIT. */
    uint32_t struct_size;
    /* AVHDX_PLAN_... */
    uint32_t flags;
    /* Bytes of the disk that would be written, or shared between files. */
    uint64_t bytes;
    /* Bytes by which files would grow, new files included. */
    uint64_t growth;
    /* Bytes that files would lose, removed files included. */
    uint64_t reclaimed;
    /* Bytes free where the leaf is; AVHDX_NO_OFFSET where that is not known. */
    uint64_t free;
    /* Files that would be made. */
    uint32_t created;
    /* Files that would be changed. */
    uint32_t changed;
    /* Files that would be removed. */
    uint32_t removed;
    /* 0. */
    uint32_t reserved;
};
#define AVHDX_PLAN_INIT { sizeof(struct avhdx_plan), 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/*
 * Tells what an operation would do to the disk as it is now, and whether it would be refused. Operations and keys are
 * those of avhdx_job_new; "rate" and "verify" mean nothing here. No file changes, but that the leaf's log is emptied
 * first; the disk may be open for reading only. Reads go on, writes wait. Content is read only where the operation has
 * to look at it, as "compact" and "convert" have; what these may share counts as copied, also with mode=reflink. Lengths
 * come true to the byte, once the disk is closed, if nothing is written to it meanwhile; a "convert" that shares stores
 * zeros, too, so that its file may be longer.
 *
 * Errors: those of the operation, except NO_SPACE, for which look at AVHDX_PLAN_FITS, and what mode=reflink refuses.
 * disk, operation, plan: not NULL; opts: may be NULL where the operation needs no key. Waits for other operations on the
 * disk. Since 1.0.
 */
int avhdx_plan(avhdx_disk *disk, const char *operation, const avhdx_opts *opts, struct avhdx_plan *plan);

/*
 * The same as JSON: an object with bytes, growth, reclaimed, free (null where not known) and files, an array of objects
 * with filename, before and after, lengths in bytes or null. Free it with avhdx_free. NULL for a failure; otherwise as
 * avhdx_plan. Since 1.0.
 */
char *avhdx_plan_json(avhdx_disk *disk, const char *operation, const avhdx_opts *opts);

/* ---- Repair ---- */

/*
 * Mending what can be mended in one file without guessing, and taking that back. What the disk reads as never changes,
 * no data is dropped and no parent guessed.
 */

/* What avhdx_repair did. Since 1.0. */
struct avhdx_repair
{
    /* Set by AVHDX_REPAIR_INIT. */
    uint32_t struct_size;
    /* 1 when the file was changed, and so has an undo file; else 0. */
    uint32_t changed;
    /* Findings mended; with "dry-run", those that can be. */
    uint64_t repaired;
    /* Broken rules that are left. */
    uint64_t errors;
    /* What is left that other programs may refuse. */
    uint64_t warnings;
    /* What is left that is legal and worth knowing. */
    uint64_t notes;
};
#define AVHDX_REPAIR_INIT { sizeof(struct avhdx_repair), 0, 0, 0, 0, 0 }

/*
 * Mends the file at path: a log that holds updates, a bad copy of the header or of the region table, entries that must
 * be 0, a last block that is cut, paths that no longer lead to the parent; with "clear-log" a log without a valid entry,
 * with "cut-tail" what is behind the last structure. Before the first byte changes, what will be overwritten is saved in
 * the undo file, "undo", or path with ".undo" behind it, which must not exist. Where nothing can be mended nothing is
 * written at all. With "dry-run" nothing is ever written.
 *
 * Returns 0 when all was done that can be, whatever is left: look at repair->errors. Each finding goes to callback after
 * the work is done, marked as repaired or not. A cut or failed repair leaves a file that can be repaired again, with
 * another undo file, or taken back. Durable on return.
 *
 * Keys: those of "repair" and of "open". Errors: NOT_VHDX, ARGUMENT (the undo file exists), LOCKED, NO_SPACE, IO.
 * path, repair: not NULL; opts, callback: may be NULL. Any thread. Since 1.0.
 */
int avhdx_repair(const char *path,
                 const avhdx_opts *opts,
                 struct avhdx_repair *repair,
                 const avhdx_issue_cb *callback);

/*
 * Takes a repair of the file at path back: it is what it was before, bit for bit. undo is the undo file of that repair,
 * or NULL for path with ".undo" behind it; it is kept. A file that was changed since is refused (ARGUMENT) and not
 * touched. If it is cut or fails it is run again; the file is not to be used before. Durable on return.
 *
 * Keys: those of "open". Errors: ARGUMENT; CHECKSUM (the undo file is damaged), UNSUPPORTED (of a later version); LOCKED,
 * IO. path: not NULL; undo, opts: may be NULL. Any thread. Since 1.0.
 */
int avhdx_repair_undo(const char *path, const char *undo, const avhdx_opts *opts);

#ifdef __cplusplus
}
#endif

#endif /* AVHDX_H */
