//! Every bound that is this library's and not the format's, with the abuse it stops.

/// Largest log read, in bytes. A header may claim 4 GiB; scanning and overlaying it would take that much memory.
pub const MAX_LOG_LEN: u32 = 1 << 30;

/// Largest metadata region, in bytes. Bounds what opening a hostile file can make us read.
pub const MAX_METADATA_REGION_LEN: u32 = 128 << 20;

/// Largest total of system or of user metadata items, in bytes.
pub const MAX_METADATA_CATEGORY_LEN: u64 = 40 << 20;

/// Most user metadata items (§2.6.1: 1024).
pub const MAX_USER_ITEMS: usize = 1024;

/// Largest BAT region, in bytes: exactly what 64 TiB with 1 MiB blocks needs.
pub const MAX_BAT_REGION_LEN: u32 = 513 << 20;

/// Largest file, in bytes. A FileOffsetMB or a log target beyond it is a file-growth attack.
pub const MAX_FILE_LEN: u64 = 256 << 40;

/// Most locator entries. The count is 16 bits wide; five are written by Windows.
pub const MAX_LOCATOR_ENTRIES: u16 = 256;

/// Longest path in a locator, in UTF-16 code units (the limit of Windows).
pub const MAX_PATH_UNITS: usize = 32_767;

/// Default and largest chain depth. Bounds open files and recursion through hostile parents.
pub const MAX_CHAIN_DEPTH: usize = 256;

/// Most directory entries looked at while searching a directory for a parent or for children.
pub const MAX_SCANNED_ENTRIES: usize = 100_000;

/// Default for the memory a chain may keep in BAT, bitmap and map pages, in bytes.
pub const DEFAULT_META_CACHE: u64 = 32 << 20;

/// Deepest directory below the one scanned for a tree of files. Bounds what bind mounts into themselves can cost.
pub const MAX_SCANNED_DEPTH: usize = 64;

/// Largest log in use that is read while scanning directories, in bytes. Windows writes 1 MiB; thousands of files that
/// claim the most a single open would read would take minutes.
pub const MAX_SCANNED_LOG: u32 = 16 << 20;
/// Most blocks of a VHD: what 2040 GiB with 512 KiB blocks need. Bounds the memory that its BAT takes to 16 MiB.
pub const MAX_VHD_BLOCKS: u64 = 4 << 20;
/// Most findings a repair compares one by one. A file of all broken entries would otherwise fill memory with them.
pub const MAX_REPAIR_FINDINGS: usize = 10_000;
/// Header updates for which a sequence number must have room, for a file to count as sound. One of a real file is small; a
/// hostile one near 2^64 opens, and refuses the first write or a later one.
pub const HEADER_UPDATES: u64 = 1 << 32;
