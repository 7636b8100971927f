//! From VHD to VHDX, as one disk or layer by layer (docs/durability.md "Convert, migrate").

use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::convert::source::{Content, VhdLayer};
use super::convert::target::Vhdx;
use super::convert::{copy, new_image, pace, write_file};
use super::create::{check_items, DIFFERENCING_BLOCK};
use super::new_file::{exists, publish, NewFile};
use super::pace::Pace;
use crate::chain::locate::directory;
use crate::chain::paths;
use crate::error::{Error, ErrorKind, IoContext, PathContext, Result};
use crate::format::locator::Locator;
use crate::format::metadata::{DiskItems, FileParameters};
use crate::guid::Guid;
use crate::image::create::NewImage;
use crate::image::payload::Payload;
use crate::options::{ConvertOptions, CopyMode, ImageFormat, MigrateOptions, OpenOptions, ProgressFn};
use crate::storage::{Access, FileSystem};
use crate::units::MIB;
use crate::vhd::file::{Source, VhdFile};
use crate::vhd::VhdChain;

/// Bytes read at once.
const PIECE: u64 = 4 * MIB;

/// Writes the VHD at `from`, with its parents, to new files: to `to` alone, or, keeping the chain, `to` for the leaf
/// and for each parent a file beside it with the parent's name and the suffix `.vhdx` (`.avhdx` for those that have
/// parents themselves). Returns the files, base first. Nothing existing is changed or replaced; all of the files appear,
/// durable, or none. The virtual disk ID is the unique ID of the base.
pub fn migrate(
    from: &Path,
    to: &Path,
    options: &MigrateOptions,
    open: &OpenOptions,
    progress: ProgressFn<'_>,
) -> Result<Vec<PathBuf>> {
    let chain = VhdChain::open(from, open)?;
    let convert = &options.convert;
    if convert.layer != 0 || convert.parent.is_some() {
        return Err(
            Error::new(ErrorKind::Argument, "layer and parent are not for migrating")
                .with_hint("migrate first, then convert the result"),
        );
    }
    if options.chain {
        return keep_chain(&chain, to, convert, open, progress);
    }
    let convert = ConvertOptions {
        to: Some(convert.to.unwrap_or(ImageFormat::Vhdx)),
        ..convert.clone()
    };
    let source = VhdLayer {
        chain: &chain,
        layer: 0,
    };
    write_file(&source, to, &convert, open, progress)?;
    Ok(vec![to.to_path_buf()])
}

/// The file for each layer, leaf first.
fn names(chain: &VhdChain, to: &Path, fs: &dyn FileSystem) -> Result<Vec<PathBuf>> {
    let dir = directory(to);
    let mut names = vec![to.to_path_buf()];
    for file in &chain.layers()[1..] {
        let mut name = OsString::from(file.name().file_stem().unwrap_or_default());
        name.push(if file.is_differencing() { ".avhdx" } else { ".vhdx" });
        names.push(dir.join(name));
    }
    for (i, name) in names.iter().enumerate() {
        if names[..i].contains(name) {
            let message = format!("two files of the chain would be {name:?}");
            return Err(Error::new(ErrorKind::Argument, message)
                .with_hint("choose another name for the new leaf, or migrate without keeping the chain"));
        }
        if fs.open(name, Access::Read).is_ok() {
            return Err(exists(name));
        }
    }
    Ok(names)
}

fn keep_chain(
    chain: &VhdChain,
    to: &Path,
    options: &ConvertOptions,
    open: &OpenOptions,
    progress: ProgressFn<'_>,
) -> Result<Vec<PathBuf>> {
    if options.to.is_some_and(|to| to != ImageFormat::Vhdx) {
        return Err(Error::new(ErrorKind::Argument, "only VHDX keeps the chain").with_hint("set to=vhdx"));
    }
    if options.mode == CopyMode::Reflink {
        return Err(
            Error::new(ErrorKind::Argument, "a chain that is kept is copied").with_hint("leave out mode=reflink")
        );
    }
    if !matches!(options.logical_sector_size, 0 | 512) {
        return Err(Error::new(
            ErrorKind::Argument,
            "a chain that is kept keeps its sectors of 512 bytes",
        )
        .with_hint("migrate without keeping the chain"));
    }
    let fs = open.file_system.clone();
    let names = names(chain, to, &*fs)?;
    let total = chain.layers().iter().map(VhdFile::size).sum();
    let mut pace = pace(total, options.rate, progress).of(to);
    let mut files = Vec::new();
    let mut parent: Option<(PathBuf, Guid)> = None;
    for (file, name) in chain.layers().iter().zip(&names).rev() {
        let new = image_of(chain, file, name, parent.as_ref(), options, open)?;
        let made = NewFile::begin(&*fs, name)?;
        let mut target = Vhdx::new(made.storage(), name, &new).at(name)?;
        match file.is_differencing() {
            true => layer(file, &target, &mut pace).at(name)?,
            false => {
                let layer = chain.layer_count() - 1;
                copy::flat(&VhdLayer { chain, layer }, &mut target, options, &mut pace).at(name)?;
            }
        }
        target.finish().at(name)?;
        parent = Some((name.clone(), target.image.data_write_guid()));
        files.push(made);
    }
    publish(&mut files)?;
    Ok(names.into_iter().rev().collect())
}

/// What the VHDX for one VHD is: its type, and its place in the new chain.
fn image_of(
    chain: &VhdChain,
    file: &VhdFile,
    name: &Path,
    parent: Option<&(PathBuf, Guid)>,
    options: &ConvertOptions,
    open: &OpenOptions,
) -> Result<NewImage> {
    let own = file.header().map_or(0, |header| header.block_size);
    let block_size = match options.block_size {
        0 if u64::from(own) >= MIB => own,
        0 => DIFFERENCING_BLOCK,
        chosen => chosen,
    };
    let options = ConvertOptions {
        disk_type: file.footer().disk_type,
        block_size,
        ..options.clone()
    };
    let Some((parent, linkage)) = parent.filter(|_| file.is_differencing()) else {
        if file.is_differencing() {
            return Err(
                Error::new(ErrorKind::ParentNotFound, "a chain without its base cannot be kept")
                    .with_path(file.name())
                    .with_hint("leave parents=off out"),
            );
        }
        let layer = chain.layer_count() - 1;
        let new = new_image(&VhdLayer { chain, layer }, &options)?;
        return Ok(new);
    };
    let origin = VhdLayer { chain, layer: 0 }.origin()?;
    let items = DiskItems {
        parameters: FileParameters {
            block_size,
            leave_block_allocated: false,
            has_parent: true,
        },
        virtual_size: file.size(),
        logical_sector_size: origin.logical_sector_size,
        physical_sector_size: origin.physical_sector_size,
        virtual_disk_id: origin.id,
        locator: Some(locator(name, parent, *linkage, open)?),
    };
    check_items(&items)?;
    Ok(NewImage {
        items,
        extra: Vec::new(),
        log_length: MIB as u32,
    })
}

/// The locator of the file that is to be `child`; its parent, in the same directory, has no name yet either.
fn locator(child: &Path, parent: &Path, linkage: Guid, open: &OpenOptions) -> Result<Locator> {
    let dir = open
        .file_system
        .absolute(&directory(child))
        .context(|| "resolve the path".into())
        .at(child)?;
    let parent = dir.join(parent.file_name().unwrap_or_default());
    let (absolute, relative) = paths::record(&dir, &parent, &open.drive_map);
    Ok(Locator::new(linkage, Some(&absolute), Some(&relative), None))
}

/// Copies what one file holds, and nothing of its parents.
fn layer(file: &VhdFile, target: &Vhdx, pace: &mut Pace<'_>) -> Result<()> {
    let image = &target.image;
    let geometry = image.geometry();
    let mut buf = Vec::new();
    let mut at = 0;
    while at < file.size() {
        let block = geometry.block_of(at);
        let end = at + geometry.block_len(block);
        let ranges = held(file, at, end)?;
        let whole = ranges.first() == Some(&(at..end));
        let mut copied = 0;
        for range in ranges {
            // A block that is held whole is written at once: it is then fully present and needs no bitmap.
            let most = if whole { end - at } else { PIECE };
            let mut from = range.start;
            while from < range.end {
                let len = most.min(range.end - from);
                buf.resize(len as usize, 0);
                read_own(file, &mut buf, from)?;
                image.write(from, Payload::Bulk(&buf))?;
                from += len;
                copied += len;
            }
        }
        pace.advance(end - at, copied)?;
        at = end;
    }
    Ok(())
}

/// The ranges of `[start, end)` that the file decides, neighbours joined.
fn held(file: &VhdFile, start: u64, end: u64) -> Result<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut at = start;
    while at < end {
        let (len, source) = file.lookup(at, end - at).at(file.name())?;
        if source != Source::Transparent {
            match ranges.last_mut().filter(|last| last.end == at) {
                Some(last) => last.end += len,
                None => ranges.push(at..at + len),
            }
        }
        at += len;
    }
    Ok(ranges)
}

fn read_own(file: &VhdFile, buf: &mut [u8], offset: u64) -> Result<()> {
    let (mut at, mut rest) = (offset, buf);
    while !rest.is_empty() {
        let (len, source) = file.lookup(at, rest.len() as u64)?;
        let (part, later) = rest.split_at_mut(len as usize);
        match source {
            Source::Data(from) => file
                .storage()
                .read_at(part, from)
                .context(|| format!("read {len} bytes at file offset {from:#x}"))
                .at(file.name())?,
            Source::Zero | Source::Transparent => part.fill(0),
        }
        (at, rest) = (at + len, later);
    }
    Ok(())
}
