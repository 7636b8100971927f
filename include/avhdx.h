/*
 * libavhdx: Hyper-V VHDX/AVHDX differencing chains as one disk.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * A checkpoint of a Hyper-V virtual machine leaves a chain of files, base.vhdx <- a.avhdx <- b.avhdx:
 * each holds what changed since its parent, and writes go to the last, the leaf.
 *
 *     avhdx_disk *d;
 *     if (avhdx_open(&d, "b.avhdx", NULL) < 0) {
 *         const avhdx_error *e = avhdx_last_error();
 *         const char *hint = avhdx_error_hint(e);
 *         fprintf(stderr, "%s\n%s\n", avhdx_error_message(e), hint ? hint : "");
 *         return 1;
 *     }
 *     avhdx_pread(d, buf, sizeof buf, 0);
 *     avhdx_pwrite(d, buf, sizeof buf, 0, 0);
 *     avhdx_flush(d);                             // survives a power cut from here on
 *     avhdx_checkpoint(d, "c.avhdx", NULL);       // b.avhdx is sealed, writes go to c.avhdx
 *     avhdx_merge(d, 1, 2, NULL, NULL);           // b.avhdx goes into a.avhdx, I/O goes on
 *     avhdx_close(d);
 *
 * Results. Functions return >= 0, or a negative errno; then avhdx_last_error() has the details of this
 *     thread: a code (AVHDX_ERR_*), one line, a hint that says what fixes it, path, layer, offset, cause.
 * NULL. Handles and outputs must not be NULL (-EINVAL names the parameter); options and progress may be;
 *     _close and _free accept it. Output handles are NULL after a failure.
 * Units. Offsets and lengths are bytes. Layers are numbers: 0 is the leaf.
 * Strings. Paths are bytes, other text is UTF-8.
 * Structs that the library fills begin with struct_size: set it with the AVHDX_..._INIT macro.
 * Threads. Functions marked "concurrent" may be called on one disk from any number of threads at once;
 *     checkpoint and merge run together with them and one after the other. Close comes last. Options are
 *     for one thread at a time. A disk does not survive fork().
 * Callbacks are called on the calling thread; their free function is called once, also after a failure.
 *     They may call anything but checkpoint, merge and close on the same disk.
 * The library starts no thread, prints nothing, installs no signal handler and reads no environment.
 */


#ifndef AVHDX_H
#define AVHDX_H

#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* Codes of avhdx_error_code(). */
#define AVHDX_ERR_NOT_VHDX 1            /* the signature is another */
#define AVHDX_ERR_UNSUPPORTED 2         /* a version or feature this library does not know */
#define AVHDX_ERR_CORRUPT 3             /* a rule of the format is broken */
#define AVHDX_ERR_CHECKSUM 4            /* a checksum does not match */
#define AVHDX_ERR_TRUNCATED 5           /* the file is cut short */
#define AVHDX_ERR_LOG_REPLAY_REQUIRED 6 /* the log must be replayed, and must not be */
#define AVHDX_ERR_PARENT_NOT_FOUND 7    /* no candidate for the parent exists */
#define AVHDX_ERR_PARENT_ID_MISMATCH 8  /* the parent was modified, or is another disk */
#define AVHDX_ERR_PARENT_ACCESS 9       /* policy or permission forbids the parent */
#define AVHDX_ERR_PARENT_MISMATCH 10    /* another sector size */
#define AVHDX_ERR_CHAIN_LOOP 11         /* the chain returns to itself, or is too deep */
#define AVHDX_ERR_HAS_CHILDREN 12       /* other files would become unusable */
#define AVHDX_ERR_LOCKED 13             /* another program uses the file */
#define AVHDX_ERR_READ_ONLY 14          /* open for reading only */
#define AVHDX_ERR_NO_SPACE 15           /* not enough space */
#define AVHDX_ERR_RANGE 16              /* outside the disk */
#define AVHDX_ERR_ARGUMENT 17           /* an argument or option that cannot be used */
#define AVHDX_ERR_SHRINK_UNSAFE 18      /* shrinking would cut data */
#define AVHDX_ERR_PENDING_OPERATION 19  /* an interrupted operation must be finished first */
#define AVHDX_ERR_CANCELLED 20          /* the caller asked to stop; run it again to finish */
#define AVHDX_ERR_NOT_FAST 21           /* changing metadata alone is not enough */
#define AVHDX_ERR_POISONED 22           /* an earlier metadata write failed */
#define AVHDX_ERR_IO 23                 /* the storage failed */
#define AVHDX_ERR_BUG 24                /* a defect of this library */

/* Types of disk. */
#define AVHDX_TYPE_FIXED 2
#define AVHDX_TYPE_DYNAMIC 3
#define AVHDX_TYPE_DIFFERENCING 4

/* Flags of structs that inform. */
#define AVHDX_INFO_READ_ONLY 1u
#define AVHDX_INFO_PENDING_MERGE 2u /* an interrupted merge: merge again */
#define AVHDX_INFO_DIRTY 4u         /* the log holds updates */

/* Flags of the data plane. */
#define AVHDX_FUA 1u       /* durable on return */
#define AVHDX_MAY_UNMAP 2u /* space may be given back */
#define AVHDX_FAST 4u      /* only if changing metadata is enough */

/* Flags of avhdx_block_status(). */
#define AVHDX_STATUS_ONE 1u
#define AVHDX_STATUS_THIS_LAYER(i) (2u | ((uint32_t)(i) << 16))

/* States of extents. All but DATA read as zeros, a HOLE of one layer as the layers below. */
#define AVHDX_EXTENT_DATA 1
#define AVHDX_EXTENT_ZERO 2
#define AVHDX_EXTENT_HOLE 3
#define AVHDX_EXTENT_UNMAPPED 4
#define AVHDX_EXTENT_UNDEFINED 5

/* How struct avhdx_io_ops opens a file. */
#define AVHDX_IO_READ 0u
#define AVHDX_IO_WRITE 1u
#define AVHDX_IO_CREATE 2u

/* Severities of avhdx_check(). */
#define AVHDX_SEVERITY_NOTE 1
#define AVHDX_SEVERITY_WARNING 2
#define AVHDX_SEVERITY_ERROR 3

/* Levels of avhdx_set_log(). */
#define AVHDX_LOG_WARNING 2
#define AVHDX_LOG_INFO 3

#ifdef __cplusplus
#define AVHDX_INIT(type) { sizeof(struct type) }
#else
#define AVHDX_INIT(type) { .struct_size = sizeof(struct type) }
#endif
#define AVHDX_PROBE_INIT AVHDX_INIT(avhdx_probe)
#define AVHDX_LIMITS_INIT AVHDX_INIT(avhdx_limits)
#define AVHDX_INFO_INIT AVHDX_INIT(avhdx_info)
#define AVHDX_LAYER_INFO_INIT AVHDX_INIT(avhdx_layer_info)
#define AVHDX_CHECK_INIT AVHDX_INIT(avhdx_check)

typedef struct avhdx_disk avhdx_disk;
typedef struct avhdx_error avhdx_error;
typedef struct avhdx_opts avhdx_opts;
typedef struct avhdx_progress_cb avhdx_progress_cb;
typedef struct avhdx_resolve_cb avhdx_resolve_cb;
typedef struct avhdx_log_cb avhdx_log_cb;
typedef struct avhdx_issue_cb avhdx_issue_cb;


// An open disk: a file and its parents. Any number of threads may use one at once; close comes last.
struct avhdx_disk;

// Details of a failure. From avhdx_last_error() or avhdx_error_dup().
struct avhdx_error;

// Options: string keys with values. One thread at a time. NULL stands for defaults wherever options are taken.
struct avhdx_opts;

// Told what the library does that may be of interest. level is one of AVHDX_LOG_*; message is one line.
struct avhdx_log_cb {
    // The function.
    void (*fn)(void *user, uint32_t level, const char *message);
    // Passed to it.
    void *user;
    // Called once with user when the callback is no longer needed. May be NULL.
    void (*free)(void *user);
};

// Asked where a parent is before the library looks for it. child is the path of the file whose parent is wanted,
// linkage the data write GUID the parent must have, as text, entries_json the child's locator as a JSON object.
// Writes a path with its NUL to path, which has room for size bytes, and returns 1; or returns 0.
struct avhdx_resolve_cb {
    // The function.
    int (*fn)(void *user,
              const char *child,
              const char *linkage,
              const char *entries_json,
              char *path,
              size_t size);
    // Passed to it.
    void *user;
    // Called once with user when the callback is no longer needed. May be NULL.
    void (*free)(void *user);
};

// The caller's files. Every function returns 0 or a negative errno, may be called from any thread that uses a disk,
// and is whole or a failure. Set struct_size to the size of this struct and leave unused members NULL.
struct avhdx_io_ops {
    // Bytes of this struct.
    uint32_t struct_size;
    // 0.
    uint32_t flags;
    // Opens a file. how: AVHDX_IO_READ, AVHDX_IO_WRITE or AVHDX_IO_CREATE (for writing, must not exist). Required.
    int (*open)(void *ctx, const char *path, uint32_t how, void **file);
    // Closes a file. Called once for each opened.
    int (*close)(void *ctx, void *file);
    // Reads exactly count bytes. Required.
    int (*pread)(void *ctx, void *file, void *buf, size_t count, uint64_t offset);
    // Writes exactly count bytes, growing the file when needed.
    int (*pwrite)(void *ctx, void *file, const void *buf, size_t count, uint64_t offset);
    // Makes all completed writes and the length durable.
    int (*flush)(void *ctx, void *file);
    // Length in bytes. Required.
    int (*get_size)(void *ctx, void *file, uint64_t *size);
    // Sets the length; new bytes read as zeros.
    int (*set_size)(void *ctx, void *file, uint64_t size);
    // Makes a range read as zeros. NULL: zeros are written.
    int (*zero)(void *ctx, void *file, uint64_t offset, uint64_t len);
    // Gives the space of a range back; it may read as anything afterwards. NULL: nothing is given back.
    int (*discard)(void *ctx, void *file, uint64_t offset, uint64_t len);
    // Renames a file, never replacing one. NULL: nothing can be created.
    int (*rename)(void *ctx, const char *from, const char *to);
    // Removes a file.
    int (*unlink)(void *ctx, const char *path);
    // Makes creations, renames and removals in a directory durable. NULL: they are at once.
    int (*sync_dir)(void *ctx, const char *path);
    // Locks a file: mode 0 not at all, 1 against writers, 2 against everybody else. NULL: no locks.
    int (*lock)(void *ctx, void *file, uint32_t mode);
};

// What avhdx_probe() tells.
struct avhdx_probe {
    // Bytes of this struct: AVHDX_PROBE_INIT.
    uint32_t struct_size;
    // One of AVHDX_TYPE_*.
    uint32_t disk_type;
    // Bytes of the disk.
    uint64_t virtual_size;
    // Bytes of a payload block.
    uint32_t block_size;
    // 512 or 4096.
    uint32_t logical_sector_size;
    // 512 or 4096.
    uint32_t physical_sector_size;
    // AVHDX_INFO_DIRTY.
    uint32_t flags;
    // SCSI identifier, in the order of its text.
    uint8_t virtual_disk_id[16];
    // Identity of the content.
    uint8_t data_write_guid[16];
    // Identity its parent must have; zero if it has none.
    uint8_t parent_linkage[16];
};

// What is efficient.
struct avhdx_limits {
    // Bytes of this struct: AVHDX_LIMITS_INIT.
    uint32_t struct_size;
    // 512 or 4096: writes of whole sectors need no reading.
    uint32_t logical_sector_size;
    // 512 or 4096.
    uint32_t physical_sector_size;
    // Bytes of a payload block of the leaf.
    uint32_t block_size;
    // Preferred alignment and size of requests, in bytes.
    uint32_t preferred;
    // Discards of less, or not aligned to this, leave the ends alone.
    uint32_t discard_granularity;
};

// A chain.
struct avhdx_info {
    // Bytes of this struct: AVHDX_INFO_INIT.
    uint32_t struct_size;
    // Number of files.
    uint32_t layer_count;
    // Bytes of the disk.
    uint64_t virtual_size;
    // Bytes of a payload block of the leaf.
    uint32_t block_size;
    // 512 or 4096.
    uint32_t logical_sector_size;
    // 512 or 4096.
    uint32_t physical_sector_size;
    // AVHDX_INFO_READ_ONLY, AVHDX_INFO_PENDING_MERGE, AVHDX_INFO_DIRTY.
    uint32_t flags;
    // Type of the leaf: one of AVHDX_TYPE_*.
    uint32_t disk_type;
    // 0.
    uint32_t reserved;
    // SCSI identifier, in the order of its text.
    uint8_t virtual_disk_id[16];
};

// One file of a chain.
struct avhdx_layer_info {
    // Bytes of this struct: AVHDX_LAYER_INFO_INIT.
    uint32_t struct_size;
    // One of AVHDX_TYPE_*.
    uint32_t disk_type;
    // Bytes of the disk as of this layer.
    uint64_t virtual_size;
    // Bytes of the file.
    uint64_t file_size;
    // Bytes the file takes on its file system; 0 if not known.
    uint64_t actual_size;
    // Bytes of a payload block.
    uint32_t block_size;
    // 512 or 4096.
    uint32_t logical_sector_size;
    // 512 or 4096.
    uint32_t physical_sector_size;
    // AVHDX_INFO_DIRTY.
    uint32_t flags;
    // Bytes of log.
    uint32_t log_size;
    // 0.
    uint32_t reserved;
    // SCSI identifier, in the order of its text.
    uint8_t virtual_disk_id[16];
    // Changes with every open that writes.
    uint8_t file_write_guid[16];
    // Identity of the content.
    uint8_t data_write_guid[16];
    // Identity its parent must have; zero if it has none.
    uint8_t parent_linkage[16];
    // The other one, during a merge; zero if there is none.
    uint8_t parent_linkage2[16];
};

// A range of the disk with one state.
struct avhdx_extent {
    // First byte, on the disk.
    uint64_t offset;
    // Bytes.
    uint64_t length;
    // Where it begins in the layer's file, or UINT64_MAX.
    uint64_t file_offset;
    // One of AVHDX_EXTENT_*.
    uint32_t state;
    // The layer that decides it, 0 = leaf.
    uint32_t layer;
};

// Called now and then by long operations with bytes done and in all; a value other than 0 cancels.
struct avhdx_progress_cb {
    // The function.
    int (*fn)(void *user, uint64_t done, uint64_t total);
    // Passed to it.
    void *user;
    // Called once with user when the callback is no longer needed, also after a failure. May be NULL.
    void (*free)(void *user);
};

// What avhdx_check() saw.
struct avhdx_check {
    // Bytes of this struct: AVHDX_CHECK_INIT.
    uint32_t struct_size;
    // 0.
    uint32_t reserved;
    // Broken rules.
    uint64_t errors;
    // What other programs may refuse.
    uint64_t warnings;
    // What is legal and worth knowing.
    uint64_t notes;
    // Payload blocks with space in the file.
    uint64_t allocated_blocks;
    // Payload blocks in all.
    uint64_t total_blocks;
    // Bytes of file no structure owns.
    uint64_t leaked_bytes;
};

// Something that avhdx_check() found. The strings live during the call.
struct avhdx_issue {
    // Bytes of this struct.
    uint32_t struct_size;
    // One of AVHDX_SEVERITY_*.
    uint32_t severity;
    // Where in the file, in bytes.
    uint64_t offset;
    // Name of the rule.
    const char *rule;
    // The structure, for example "BAT entry 17".
    const char *structure;
    // What the file holds.
    const char *found;
    // What the rule wants.
    const char *wanted;
};

// Told of each thing that avhdx_check() finds.
struct avhdx_issue_cb {
    // The function.
    void (*fn)(void *user, const struct avhdx_issue *issue);
    // Passed to it.
    void *user;
    // Called once with user when the callback is no longer needed. May be NULL.
    void (*free)(void *user);
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The last failure of a libavhdx function on this thread; code 0 if there was none. Never NULL. Valid until the next
// failure on this thread: avhdx_error_dup() keeps it.
const struct avhdx_error *avhdx_last_error(void);

// What happened: one of AVHDX_ERR_*, 0 for no error.
int avhdx_error_code(const struct avhdx_error *e);

// The errno, positive: the operating system's own where it gave one.
int avhdx_error_errno(const struct avhdx_error *e);

// The HRESULT Windows uses for this, 0 where it has none.
uint32_t avhdx_error_hresult(const struct avhdx_error *e);

// One line for people. Never NULL for an error that is not NULL.
const char *avhdx_error_message(const struct avhdx_error *e);

// What fixes it: a command or an option. NULL if nothing is known to.
const char *avhdx_error_hint(const struct avhdx_error *e);

// The file concerned, NULL if none is.
const char *avhdx_error_path(const struct avhdx_error *e);

// The layer concerned, 0 = leaf; -1 if none is.
int64_t avhdx_error_layer(const struct avhdx_error *e);

// The offset concerned, in bytes: of the disk for requests, of the file for structures; -1 if none is.
int64_t avhdx_error_offset(const struct avhdx_error *e);

// The causes, joined by ": "; NULL if there are none.
const char *avhdx_error_cause(const struct avhdx_error *e);

// A copy that stays valid until avhdx_error_free().
struct avhdx_error *avhdx_error_dup(const struct avhdx_error *e);

// Frees a copy. NULL is allowed.
void avhdx_error_free(struct avhdx_error *e);

// The name of a code, as in AVHDX_ERR_<name>: "CORRUPT", "LOCKED" ... NULL for a number that is no code.
const char *avhdx_code_name(int code);

// The version of the library: "1.0.0".
const char *avhdx_version(void);

// Whether the library has a feature: 1 or 0. Features: "merge", "merge.consume", "reflink", "check", "io".
int avhdx_has(const char *feature);

// The options of "open", "create", "checkpoint", "merge" or "check" as a JSON array of objects with name, type,
// default, meaning and since. NULL for another kind. Free with avhdx_free().
char *avhdx_schema_json(const char *kind);

// Frees what the library returned and said to free so. NULL is allowed.
void avhdx_free(void *p);

// Sets where messages of the process go: those of AVHDX_LOG_* up to level. NULL: nowhere, as at the start.
int avhdx_set_log(const struct avhdx_log_cb *cb,
                  uint32_t level);

// New options, all at their defaults. Free with avhdx_opts_free().
struct avhdx_opts *avhdx_opts_new(void);

// Sets a key from text; sizes may end in k, M, G or T.
// Errors: ARGUMENT for an unknown key (the hint names the nearest) or a value that does not fit.
int avhdx_opts_set_str(struct avhdx_opts *o, const char *key, const char *value);

// Sets a key to a number.
int avhdx_opts_set_u64(struct avhdx_opts *o, const char *key, uint64_t value);

// Sets a key on (not 0) or off (0).
int avhdx_opts_set_bool(struct avhdx_opts *o, const char *key, int value);

// Sets keys from one line: "key=value,key=value". A key alone switches it on; a comma in a value is doubled.
int avhdx_opts_parse(struct avhdx_opts *o,
                     const char *line);

// Sets the function that is asked first where a parent is. NULL: none. The struct is copied.
int avhdx_opts_set_resolver(struct avhdx_opts *o, const struct avhdx_resolve_cb *cb);

// Sets the functions through which every file is opened, read and written. NULL: the host's files. The struct is
// copied; ctx is passed to every function and must outlive every disk opened with these options.
int avhdx_opts_set_io(struct avhdx_opts *o,
                      const struct avhdx_io_ops *io,
                      void *ctx);

// Frees options. NULL is allowed. Disks opened with them go on.
void avhdx_opts_free(struct avhdx_opts *o);

// Tells what one file says about itself. Takes no lock, opens no parent, writes nothing, reads little.
// Errors: NOT_VHDX, CORRUPT and its kin, IO. Any thread.
int avhdx_probe(const char *file,
                struct avhdx_probe *out);

// Opens a file and its parents. Unless read-only is set, the file is locked against other programs and its log, if
// dirty, replayed; nothing else is written before the first change. Parents are opened for reading only.
// Errors: NOT_VHDX, CORRUPT and its kin, PARENT_*, CHAIN_LOOP, LOCKED, IO. *d is NULL after a failure. Any thread.
int avhdx_open(struct avhdx_disk **d,
               const char *file,
               const struct avhdx_opts *o);

// Opens exactly these n files, leaf first. Each must be the parent of the one before it; ignore-id-mismatch lifts that.
int avhdx_open_chain(struct avhdx_disk **d,
                     const char *const *files,
                     size_t n,
                     const struct avhdx_opts *o);

// Opens a file that is already open. The descriptor belongs to the library from here on, also after a failure. name
// is its path, for messages and for finding its parents.
int avhdx_open_fd(struct avhdx_disk **d,
                  int fd,
                  const char *name,
                  const struct avhdx_opts *o);

// Makes durable everything that was completed before the call, by any thread: it survives a power cut.
// Errors: IO and NO_SPACE from the storage, after which the disk is POISONED: writes fail, reads go on, and opening the
// file again finds everything that was flushed before. Concurrent.
int avhdx_flush(struct avhdx_disk *d);

// Makes everything durable, empties the log, gives locks back, and frees the disk, also when it reports a failure: the
// file is then as after a power cut. NULL is allowed. Nobody else may use the disk at that time or later.
int avhdx_close(struct avhdx_disk *d);

// Frees the disk writing nothing more, as in a power cut: what was not flushed may be lost. NULL is allowed.
void avhdx_abort(struct avhdx_disk *d);

// Bytes of the disk, or a negative errno. Concurrent.
int64_t avhdx_get_size(const struct avhdx_disk *d);

// Tells what is efficient. Concurrent.
int avhdx_get_limits(const struct avhdx_disk *d, struct avhdx_limits *out);

// Tells about the chain. Concurrent.
int avhdx_get_info(const struct avhdx_disk *d, struct avhdx_info *out);

// Number of files of the chain, or a negative errno. Concurrent.
int avhdx_layer_count(const struct avhdx_disk *d);

// Tells about one file; layer 0 is the leaf. Concurrent.
int avhdx_layer_info(const struct avhdx_disk *d, uint32_t layer, struct avhdx_layer_info *out);

// The path by which a layer was opened, NULL after a failure. Valid as long as the disk. Concurrent.
const char *avhdx_layer_path(const struct avhdx_disk *d,
                             uint32_t layer);

// The descriptor of a layer's file, for callers that read by block status themselves; it belongs to the disk.
// -ENOTSUP where there is none, or where the file must be read through the library because its log is dirty.
int avhdx_layer_fd(const struct avhdx_disk *d,
                   uint32_t layer);

// Everything known of the chain as a JSON object; qemu-img's keys where they mean the same. Free with avhdx_free().
// NULL after a failure. Concurrent.
char *avhdx_info_json(const struct avhdx_disk *d);

// Reads count bytes at offset: all of them or none. Any alignment.
// Errors: RANGE beyond the end (buf is untouched), CORRUPT and its kin where metadata is first used, IO. Concurrent.
int avhdx_pread(struct avhdx_disk *d,
                void *buf,
                size_t count,
                uint64_t offset);

// Writes count bytes at offset to the leaf. Any alignment; whole sectors are fastest. Flags: AVHDX_FUA.
// Durable after avhdx_flush(), or on return with AVHDX_FUA. After a failure any sector of the range may be old or new.
// Errors: RANGE, READ_ONLY, NO_SPACE, POISONED, IO. Concurrent; of writes that overlap each sector is one or the other.
int avhdx_pwrite(struct avhdx_disk *d,
                 const void *buf,
                 size_t count,
                 uint64_t offset,
                 uint32_t flags_);

// As avhdx_pread(), into iovcnt (at most 1024) buffers one after the other.
int avhdx_preadv(struct avhdx_disk *d, const struct iovec *iov, int iovcnt, uint64_t offset);

// As avhdx_pwrite(), from iovcnt (at most 1024) buffers one after the other.
int avhdx_pwritev(struct avhdx_disk *d,
                  const struct iovec *iov,
                  int iovcnt,
                  uint64_t offset,
                  uint32_t flags_);

// Reads the disk as of a layer: what it was when that layer's child was made. Otherwise as avhdx_pread().
int avhdx_layer_pread(struct avhdx_disk *d,
                      uint32_t layer,
                      void *buf,
                      size_t count,
                      uint64_t offset);

// Makes len bytes at offset read as zeros, whatever parents hold there. Flags: AVHDX_FUA; AVHDX_MAY_UNMAP: whole blocks
// give their space back; AVHDX_FAST: NOT_FAST, and nothing done, unless changing metadata is enough. Otherwise as
// avhdx_pwrite().
int avhdx_zero(struct avhdx_disk *d,
               uint64_t offset,
               uint64_t len,
               uint32_t flags_);

// Gives the space of the whole blocks in the range back; they then read as zeros, never as a parent's older data. The
// rest is left alone. Flags: AVHDX_FUA. Otherwise as avhdx_pwrite().
int avhdx_discard(struct avhdx_disk *d,
                  uint64_t offset,
                  uint64_t len,
                  uint32_t flags_);

// Tells what is where: up to *n extents from offset on; sets *n to their number and *processed to the bytes they
// cover. Flags: AVHDX_STATUS_ONE: one extent; AVHDX_STATUS_THIS_LAYER(i): the answer for one file, where what it does
// not hold is a HOLE. Other threads may write meanwhile. Concurrent.
int avhdx_block_status(struct avhdx_disk *d,
                       uint64_t offset,
                       uint64_t len,
                       uint32_t flags_,
                       struct avhdx_extent *extents,
                       size_t *n,
                       uint64_t *processed);

// Creates a disk: keys type, size, block-size, logical-sector-size, physical-sector-size, log-size, parent, id. Written
// under a temporary name and renamed; an existing file is never replaced (-EEXIST). Durable on return. Any thread.
int avhdx_create(const char *file,
                 const struct avhdx_opts *o);

// Seals the leaf and continues on a new differencing child at new_leaf, which must not exist. Reads go on meanwhile,
// writes wait for a few flushes. Keys: block-size. After a failure the disk goes on as before. Concurrent with the data
// plane; control functions wait for one another.
int avhdx_checkpoint(struct avhdx_disk *d,
                     const char *new_leaf,
                     const struct avhdx_opts *o);

// Folds layers top to base-1 into layer base (0 = leaf): in one pass, with reads and writes going on. Keys: mode, rate,
// unlink, relink, siblings, verify. Durable on return, when the chain continues without the merged layers. A failure or
// cancellation leaves a chain that reads the same; merging again finishes it.
// Errors: HAS_CHILDREN and NO_SPACE before anything is changed, CANCELLED, READ_ONLY, LOCKED, IO.
int avhdx_merge(struct avhdx_disk *d,
                uint32_t top,
                uint32_t base,
                const struct avhdx_opts *o,
                const struct avhdx_progress_cb *p);

// Opens child, merges it into its parent, or into the ancestor dest if that is not NULL, and closes. The shape of
// Merge-VHD; otherwise as avhdx_merge(). Any thread.
int avhdx_merge_path(const char *child,
                     const char *dest,
                     const struct avhdx_opts *o,
                     const struct avhdx_progress_cb *p);

// Checks one file against every rule of the format; writes nothing. Keys: windows. Each thing found goes to cb, which
// may be NULL, the counts to out. 0 also when rules are broken: see out->errors. Any thread.
int avhdx_check(const char *file,
                const struct avhdx_opts *o,
                struct avhdx_check *out,
                const struct avhdx_issue_cb *cb);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* AVHDX_H */
