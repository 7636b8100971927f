//! New files (MS-VHDX 2; docs/durability.md "Create").

use std::path::Path;
use std::sync::Arc;

use super::new_file::new_file;
use crate::chain::locate::directory;
use crate::chain::{open, paths};
use crate::error::{Error, ErrorKind, IoContext, PathContext, Result};
use crate::format::locator::Locator;
use crate::format::metadata::{self, DiskItems, FileParameters, Item};
use crate::guid::Guid;
use crate::image::create::{self as layout, NewImage};
use crate::image::{Image, Shared};
use crate::limits;
use crate::options::{CreateOptions, DiskType, LogPolicy, OpenOptions};
use crate::storage::{Access, FileSystem, LockMode, Storage};
use crate::units::MIB;

pub(super) const DIFFERENCING_BLOCK: u32 = 2 << 20;
pub(super) const DYNAMIC_BLOCK: u32 = 32 << 20;

/// Creates a disk. Written under a temporary name in the same directory and renamed when complete and durable, so a
/// file of this name is either absent or whole; an existing file is never replaced (`EEXIST`). Durable on return.
pub fn create(path: &Path, options: &CreateOptions) -> Result<()> {
    let fs = &*options.open.file_system;
    let new = match (options.disk_type, &options.parent) {
        (DiskType::Differencing, Some(parent)) => differencing(path, parent, options)?,
        (DiskType::Differencing, None) => {
            return Err(Error::new(ErrorKind::Argument, "a differencing disk needs a parent")
                .with_hint("name it with the parent option"))
        }
        (_, Some(_)) => {
            return Err(Error::new(ErrorKind::Argument, "only a differencing disk has a parent")
                .with_hint("set type=differencing"))
        }
        (_, None) => standalone(options)?,
    };
    publish(fs, path, &new).map(drop)
}

fn argument(message: impl Into<String>, hint: &'static str) -> Error {
    Error::new(ErrorKind::Argument, message.into()).with_hint(hint)
}

fn log_length(options: &CreateOptions) -> Result<u32> {
    match options.log_size {
        0 => Ok(MIB as u32),
        len if u64::from(len) % MIB == 0 && len <= limits::MAX_LOG_LEN => Ok(len),
        len => Err(argument(
            format!("a log of {len} bytes"),
            "the log size is a multiple of 1 MiB, at most 1 GiB",
        )),
    }
}

fn or(value: u32, default: u32) -> u32 {
    if value == 0 {
        default
    } else {
        value
    }
}

fn standalone(options: &CreateOptions) -> Result<NewImage> {
    let fixed = options.disk_type == DiskType::Fixed;
    let items = DiskItems {
        parameters: FileParameters {
            block_size: or(
                options.block_size,
                if fixed { DIFFERENCING_BLOCK } else { DYNAMIC_BLOCK },
            ),
            leave_block_allocated: fixed,
            has_parent: false,
        },
        virtual_size: options.size,
        logical_sector_size: or(options.logical_sector_size, 512),
        physical_sector_size: or(options.physical_sector_size, 4096),
        virtual_disk_id: options.id.unwrap_or_else(Guid::random),
        locator: None,
    };
    check_items(&items)?;
    Ok(NewImage {
        items,
        extra: Vec::new(),
        log_length: log_length(options)?,
    })
}

/// The rules of the format, said in terms of options.
pub(super) fn check_items(items: &DiskItems) -> Result<()> {
    if !matches!(items.physical_sector_size, 512 | 4096) {
        let message = format!("a physical sector size of {}", items.physical_sector_size);
        return Err(argument(message, "it is 512 or 4096"));
    }
    let parameters = items.parameters;
    crate::units::Geometry::new(
        items.virtual_size,
        parameters.block_size,
        items.logical_sector_size,
        parameters.has_parent,
        0,
    )
    .map(drop)
    .map_err(|defect| {
        argument(
            format!("{} is {}, wanted {}", defect.structure, defect.found, defect.wanted),
            "see the options size, block-size and logical-sector-size",
        )
    })
}

fn differencing(path: &Path, parent: &Path, options: &CreateOptions) -> Result<NewImage> {
    let open = &options.open;
    let storage = open::storage(parent, Access::Read, open)?;
    open::lock(&*storage, LockMode::Read, open).at(parent)?;
    let shared = Shared::new(open.meta_cache_size, open.cache);
    let image = Image::open_read(storage, parent, LogPolicy::Memory, &shared).at(parent)?;
    let mut child = child_of(&image, path, open)?;
    let items = &mut child.items;
    for (wanted, found, name) in [
        (options.logical_sector_size, items.logical_sector_size, "logical"),
        (options.physical_sector_size, items.physical_sector_size, "physical"),
    ] {
        if wanted != 0 && wanted != found && name == "logical" {
            return Err(argument(
                format!("a logical sector size of {wanted} over a parent with {found}"),
                "leave it out: a differencing disk has its parent's",
            ));
        }
    }
    items.parameters.block_size = or(options.block_size, DIFFERENCING_BLOCK);
    items.physical_sector_size = or(options.physical_sector_size, items.physical_sector_size);
    items.virtual_size = if options.size == 0 {
        items.virtual_size
    } else {
        options.size
    };
    items.virtual_disk_id = options.id.unwrap_or(items.virtual_disk_id);
    child.log_length = log_length(options)?;
    check_items(items)?;
    Ok(child)
}

/// What a child of `parent` at `path` is: it inherits every item of the virtual disk and records the parent's
/// DataWriteGuid and where it is.
pub(super) fn child_of(parent: &Image, path: &Path, options: &OpenOptions) -> Result<NewImage> {
    let fs = &*options.file_system;
    let inherited = parent.items();
    let locator = locator_to(fs, path, parent.name(), parent.data_write_guid(), options)?;
    let known = [
        metadata::VIRTUAL_DISK_SIZE,
        metadata::VIRTUAL_DISK_ID,
        metadata::LOGICAL_SECTOR_SIZE,
        metadata::PHYSICAL_SECTOR_SIZE,
    ];
    let extra: Vec<(Item, Vec<u8>)> = parent
        .virtual_disk_items()?
        .into_iter()
        .filter(|(item, _)| item.is_user || !known.contains(&item.id))
        .collect();
    Ok(NewImage {
        items: DiskItems {
            parameters: FileParameters {
                block_size: DIFFERENCING_BLOCK,
                leave_block_allocated: false,
                has_parent: true,
            },
            locator: Some(locator),
            ..inherited
        },
        extra,
        log_length: MIB as u32,
    })
}

/// A locator in the file at `child` for the parent at `parent`.
pub(super) fn locator_to(
    fs: &dyn FileSystem,
    child: &Path,
    parent: &Path,
    linkage: Guid,
    options: &OpenOptions,
) -> Result<Locator> {
    let absolute = |path: &Path| {
        fs.absolute(path)
            .context(|| "resolve the path".into())
            .map_err(|e| e.with_path(path))
    };
    let child_dir = absolute(&directory(child))?;
    let parent = absolute(parent)?;
    let (win32, relative) = paths::record(&child_dir, &parent, &options.drive_map);
    Ok(Locator::new(linkage, Some(&win32), Some(&relative), None))
}

/// Writes a new file and gives it its name. Returns the file, open.
pub(super) fn publish(fs: &dyn FileSystem, path: &Path, new: &NewImage) -> Result<Arc<dyn Storage>> {
    new_file(fs, path, |storage| layout::write(&**storage, new))
}
