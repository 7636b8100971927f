//! The shape of the ABI as Rust sees it, compared with the golden file that the C tests compare with what C sees.

use std::fmt::Write;
use std::mem::offset_of;

use super::*;

macro_rules! shapes {
    ($out:ident: $($name:ident { $($member:ident),* $(,)? })*) => {$(
        writeln!($out, "struct {} {}", stringify!($name), size_of::<$name>()).unwrap();
        $({
            let member = stringify!($member).trim_start_matches("r#");
            writeln!($out, "  {} {}", member, offset_of!($name, $member)).unwrap();
        })*
    )*};
}

macro_rules! constants {
    ($out:ident: $($name:ident)*) => {$(
        writeln!($out, "{} {}", stringify!($name), $name).unwrap();
    )*};
}

#[test]
fn layout_and_constants_are_as_released() {
    let mut text = String::new();
    shapes! { text:
        avhdx_progress_cb { r#fn, user, free }
        avhdx_log_cb { r#fn, user, free }
        avhdx_resolve_cb { r#fn, user, free }
        avhdx_issue_cb { r#fn, user, free }
        avhdx_parent_query { struct_size, entry_count, child, linkage, keys, values }
        avhdx_issue {
            struct_size, severity, offset, rule, structure, found, wanted, message, repaired, reserved,
        }
        avhdx_io_ops {
            struct_size, flags, free, open, close, pread, pwrite, flush, get_size, set_size, zero, lock, create, rename,
            unlink, sync_dir, list,
        }
        avhdx_probe {
            struct_size, r#type, virtual_size, block_size, logical_sector_size, physical_sector_size, flags,
            virtual_disk_id, data_write_guid, parent_linkage, parent_linkage2,
        }
        avhdx_limits {
            struct_size, logical_sector_size, physical_sector_size, block_size, preferred, discard_granularity,
        }
        avhdx_info {
            struct_size, r#type, virtual_size, file_size, actual_size, layer_count, block_size, logical_sector_size,
            physical_sector_size, flags, reserved, virtual_disk_id,
        }
        avhdx_layer_info {
            struct_size, r#type, virtual_size, file_size, actual_size, block_size, logical_sector_size,
            physical_sector_size, log_size, flags, reserved, virtual_disk_id, file_write_guid, data_write_guid,
            parent_linkage, parent_linkage2,
        }
        avhdx_extent { offset, length, state, layer, file_offset }
        avhdx_check {
            struct_size, reserved, errors, warnings, notes, allocated_blocks, total_blocks, leaked_bytes,
        }
        avhdx_progress { struct_size, reserved, done, total }
        avhdx_pending { struct_size, stage, top, base }
        avhdx_plan { struct_size, flags, bytes, growth, reclaimed, free, created, changed, removed, reserved }
        avhdx_tree_node {
            struct_size, role, r#type, flags, problems, parent, child_count, depth, virtual_size, file_size, actual_size,
            modified, virtual_disk_id, data_write_guid, parent_linkage,
        }
        avhdx_repair { struct_size, changed, repaired, errors, warnings, notes }
    }
    constants! { text:
        AVHDX_LOG_ERROR AVHDX_LOG_WARN AVHDX_LOG_INFO AVHDX_LOG_DEBUG
        AVHDX_IO_WRITE AVHDX_IO_RELEASE AVHDX_IO_UNLOCKED AVHDX_IO_LOCK_READ AVHDX_IO_LOCK_WRITE
        AVHDX_TYPE_FIXED AVHDX_TYPE_DYNAMIC AVHDX_TYPE_DIFFERENCING
        AVHDX_INFO_DIRTY_LOG AVHDX_INFO_READ_ONLY AVHDX_INFO_PENDING_MERGE AVHDX_INFO_HAS_PARENT
        AVHDX_FUA AVHDX_MAY_UNMAP AVHDX_FAST AVHDX_ONE
        AVHDX_EXACT AVHDX_STRICT AVHDX_NO_NODE
        AVHDX_ROLE_DISK AVHDX_ROLE_BASE AVHDX_ROLE_CHECKPOINT AVHDX_ROLE_LEAF AVHDX_ROLE_ORPHAN AVHDX_ROLE_SET
        AVHDX_ROLE_BROKEN AVHDX_PROBLEM_MISSING_PARENT AVHDX_PROBLEM_PARENT_MODIFIED AVHDX_PROBLEM_INTERRUPTED_MERGE
        AVHDX_PROBLEM_STALE_PATH AVHDX_PROBLEM_DUPLICATE AVHDX_PROBLEM_BROKEN AVHDX_PROBLEM_LOOP
        AVHDX_META_DISK
        AVHDX_PENDING_NONE AVHDX_PENDING_MERGE AVHDX_PENDING_TIDYING
        AVHDX_PLAN_FITS
        AVHDX_STATE_DATA AVHDX_STATE_ZERO AVHDX_STATE_HOLE AVHDX_STATE_UNMAPPED AVHDX_STATE_UNDEFINED
        AVHDX_SEVERITY_NOTE AVHDX_SEVERITY_WARNING AVHDX_SEVERITY_ERROR
        AVHDX_ERR_NOT_VHDX AVHDX_ERR_UNSUPPORTED AVHDX_ERR_CORRUPT AVHDX_ERR_CHECKSUM AVHDX_ERR_TRUNCATED
        AVHDX_ERR_LOG_REPLAY_REQUIRED AVHDX_ERR_PARENT_NOT_FOUND AVHDX_ERR_PARENT_ID_MISMATCH AVHDX_ERR_PARENT_ACCESS
        AVHDX_ERR_PARENT_MISMATCH AVHDX_ERR_CHAIN_LOOP AVHDX_ERR_HAS_CHILDREN AVHDX_ERR_LOCKED AVHDX_ERR_READ_ONLY
        AVHDX_ERR_NO_SPACE AVHDX_ERR_RANGE AVHDX_ERR_ARGUMENT AVHDX_ERR_SHRINK_UNSAFE AVHDX_ERR_PENDING_OPERATION
        AVHDX_ERR_CANCELLED AVHDX_ERR_NOT_FAST AVHDX_ERR_POISONED AVHDX_ERR_IO AVHDX_ERR_BUG
    }
    let golden = include_str!("../../c-tests/layout.golden");
    assert!(
        text == golden,
        "layout changed; if only by additions, this is the new golden file:\n{text}"
    );
}
