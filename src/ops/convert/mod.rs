//! Converting: another format, type, block size or sector size; flattening; rebasing by copying (docs/durability.md
//! "Convert, migrate").
//!
//! ```text
//!   source   what is read: a chain at a layer, VHDX or VHD
//!   copy     holes are skipped, zeros left out, or what equals the parent
//!   target   what is written: raw, a stream, VHDX, VHD
//! ```

pub(super) mod copy;
pub(super) mod source;
pub(super) mod target;

use std::io::Write;
use std::path::Path;

use super::create::{check_items, child_of, DIFFERENCING_BLOCK, DYNAMIC_BLOCK};
use super::new_file::new_file;
use super::pace::Pace;
use crate::chain::Chain;
use crate::error::{Error, ErrorKind, IoContext, PathContext, Result};
use crate::format::metadata::{DiskItems, FileParameters};
use crate::image::create::NewImage;
use crate::options::{ConvertOptions, CopyMode, DiskType, ImageFormat, OpenOptions, ProgressFn};
use crate::units::MIB;
use crate::vhd::write::VhdWriter;

use source::{Content, Layer};
use target::{Raw, Stream, Vhdx};

/// What a conversion made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ConvertReport {
    /// The format.
    pub format: ImageFormat,
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
    /// Length of the file.
    pub file_size: u64,
    /// Bytes shared with the files converted, not copied.
    pub reflinked: u64,
}

/// Writes what the disk reads as to a new file at `out`, made under a temporary name and renamed when complete and
/// durable: a file of this name is either absent or whole, and an existing one is never replaced (`EEXIST`). What nobody
/// stores is not read; of what is copied, zeros are not stored ([`crate::options::CopyMode`]). On failure or cancellation
/// nothing is left. The new disk has the source's virtual disk ID, sector sizes and virtual disk items. Other operations
/// on the chain wait; writes to the disk during the conversion may or may not be in the result.
pub fn convert(chain: &Chain, out: &Path, options: &ConvertOptions, progress: ProgressFn<'_>) -> Result<ConvertReport> {
    let _control = chain.control.lock();
    let layer = options.layer;
    write_file(&Layer { chain, layer }, out, options, chain.options(), progress)
}

/// Writes what the disk reads as at a layer to a stream, zeros included. Returns the bytes. Other operations on the chain
/// wait: whoever reads the stream must not wait for one.
pub fn convert_to_stream(
    chain: &Chain,
    out: &mut dyn Write,
    options: &ConvertOptions,
    progress: ProgressFn<'_>,
) -> Result<u64> {
    let layer = options.layer;
    if options.to.is_some_and(|to| to != ImageFormat::Raw) || options.parent.is_some() {
        return Err(argument(
            "only raw can be written to a stream",
            "name a file, or use to=raw",
        ));
    }
    if options.mode == CopyMode::Reflink {
        return Err(argument("a stream shares no extents", "name a file, or use mode=auto"));
    }
    let _control = chain.control.lock();
    let source = &Layer { chain, layer };
    let size = source.size()?;
    let mut pace = pace(size, options.rate, progress);
    let mut target = Stream::new(out);
    copy::flat(source, &mut target, options, &mut pace)?;
    target.fill(size)?;
    target.flush()?;
    Ok(size)
}

/// The pace of writing `size` bytes of disk.
pub(super) fn pace(size: u64, rate: u64, progress: ProgressFn<'_>) -> Pace<'_> {
    let mut pace = Pace::new("the conversion", "nothing is left of it; run it again", rate, progress);
    pace.expect(size);
    pace
}

fn argument(message: impl Into<String>, hint: &'static str) -> Error {
    Error::new(ErrorKind::Argument, message.into()).with_hint(hint)
}

/// The format by the name of the file.
fn by_name(out: &Path) -> ImageFormat {
    let suffix = out.extension().map(|suffix| suffix.to_ascii_lowercase());
    match suffix.as_deref().and_then(|suffix| suffix.to_str()) {
        Some("vhdx" | "avhdx") => ImageFormat::Vhdx,
        Some("vhd") => ImageFormat::Vhd,
        _ => ImageFormat::Raw,
    }
}

pub(super) fn write_file(
    source: &dyn Content,
    out: &Path,
    options: &ConvertOptions,
    open: &OpenOptions,
    progress: ProgressFn<'_>,
) -> Result<ConvertReport> {
    let size = source.size()?;
    let format = match (options.to, &options.parent) {
        (None, Some(_)) => ImageFormat::Vhdx,
        (to, _) => to.unwrap_or_else(|| by_name(out)),
    };
    check(source, format, options)?;
    let fs = open.file_system.clone();
    let mut pace = pace(size, options.rate, progress).of(out);
    // Asked for before the file has its name: after that nothing may fail.
    let (mut file_size, mut reflinked) = (0, 0);
    match (format, &options.parent) {
        (ImageFormat::Raw, _) => new_file(&*fs, out, |storage| {
            storage
                .set_len(size)
                .context(|| format!("extend the file to {size} bytes"))?;
            reflinked = copy::flat(source, &mut Raw(&**storage), options, &mut pace)?;
            file_size = target::finish(&**storage)?;
            Ok(())
        })?,
        (ImageFormat::Vhd, _) => {
            let id = source.origin()?.id;
            let fixed = options.disk_type == DiskType::Fixed;
            new_file(&*fs, out, |storage| {
                let mut writer = VhdWriter::new(&**storage, size, id, fixed, options.block_size)?;
                reflinked = copy::flat(source, &mut writer, options, &mut pace)?;
                writer.finish()?;
                file_size = target::finish(&**storage)?;
                Ok(())
            })?
        }
        (ImageFormat::Vhdx, None) => {
            let new = new_image(source, options)?;
            new_file(&*fs, out, |storage| {
                let mut target = Vhdx::new(storage, out, &new)?;
                reflinked = copy::flat(source, &mut target, options, &mut pace)?;
                file_size = target.finish()?;
                Ok(())
            })?
        }
        (ImageFormat::Vhdx, Some(path)) => {
            let mut reading = open.clone();
            reading.read_only = true;
            reading.parents = true;
            let parent = Chain::open(path, &reading)?;
            let new = child_image(source, &parent, out, options, open)?;
            let parent = Layer {
                chain: &parent,
                layer: 0,
            };
            new_file(&*fs, out, |storage| {
                let mut target = Vhdx::new(storage, out, &new)?;
                copy::difference(source, &parent, &mut target, options, &mut pace)?;
                file_size = target.finish()?;
                Ok(())
            })?
        }
    };
    Ok(ConvertReport {
        format,
        virtual_size: size,
        file_size,
        reflinked,
    })
}

/// What does not go together.
fn check(source: &dyn Content, format: ImageFormat, options: &ConvertOptions) -> Result<()> {
    let differencing = options.disk_type == DiskType::Differencing;
    match (&options.parent, format) {
        (Some(_), ImageFormat::Raw | ImageFormat::Vhd) => {
            return Err(argument("only a VHDX can be made on a parent", "set to=vhdx"));
        }
        (Some(_), _) if options.mode == CopyMode::Reflink => {
            return Err(argument(
                "what differs from the parent is compared and copied",
                "leave out mode=reflink",
            ));
        }
        (Some(_), _) if options.disk_type == DiskType::Fixed => {
            return Err(argument(
                "a fixed disk has no parent",
                "leave out the type: it is differencing",
            ));
        }
        (None, _) if differencing => {
            return Err(argument("a differencing disk needs a parent", "name it with parent"));
        }
        _ => {}
    }
    let sector = source.origin()?.logical_sector_size;
    match format {
        ImageFormat::Raw if options.block_size != 0 || options.logical_sector_size != 0 => Err(argument(
            "a raw file has no blocks and no sector size",
            "leave block-size and logical-sector-size out",
        )),
        // What is on a disk with sectors of 4096 cannot be found on one with 512.
        ImageFormat::Vhd if sector != 512 && options.logical_sector_size != 512 => Err(argument(
            format!("a VHD has sectors of 512 bytes, this disk of {sector}"),
            "convert to VHDX, or insist with logical-sector-size=512: partition tables will not be found",
        )),
        ImageFormat::Vhd if !matches!(options.logical_sector_size, 0 | 512) => Err(argument(
            "a VHD has sectors of 512 bytes",
            "leave logical-sector-size out",
        )),
        _ => Ok(()),
    }
}

fn or(value: u32, default: u32) -> u32 {
    if value == 0 {
        default
    } else {
        value
    }
}

/// A VHDX without parent for this content.
pub(super) fn new_image(source: &dyn Content, options: &ConvertOptions) -> Result<NewImage> {
    let origin = source.origin()?;
    let fixed = options.disk_type == DiskType::Fixed;
    let logical_sector_size = or(options.logical_sector_size, origin.logical_sector_size);
    let items = DiskItems {
        parameters: FileParameters {
            block_size: or(
                options.block_size,
                if fixed { DIFFERENCING_BLOCK } else { DYNAMIC_BLOCK },
            ),
            leave_block_allocated: fixed,
            has_parent: false,
        },
        virtual_size: source.size()?,
        logical_sector_size,
        physical_sector_size: origin.physical_sector_size.max(logical_sector_size),
        virtual_disk_id: origin.id,
        locator: None,
    };
    check_items(&items)?;
    Ok(NewImage {
        items,
        extra: origin.extra,
        log_length: MIB as u32,
    })
}

/// A differencing VHDX on `parent` for this content.
fn child_image(
    source: &dyn Content,
    parent: &Chain,
    out: &Path,
    options: &ConvertOptions,
    open: &OpenOptions,
) -> Result<NewImage> {
    let sector = source.origin()?.logical_sector_size;
    let image = parent.layer(0)?;
    let mut new = child_of(&image, out, open).at(image.name())?;
    let wanted = new.items.logical_sector_size;
    if sector != wanted || !(options.logical_sector_size == 0 || options.logical_sector_size == wanted) {
        let message = format!("the parent has logical sectors of {wanted} bytes, the disk of {sector}");
        return Err(Error::new(ErrorKind::ParentMismatch, message)
            .with_path(&parent.layer_path(0)?)
            .with_hint("a differencing disk has its parent's sectors"));
    }
    new.items.parameters.block_size = or(options.block_size, DIFFERENCING_BLOCK);
    new.items.virtual_size = source.size()?;
    check_items(&new.items)?;
    Ok(new)
}
