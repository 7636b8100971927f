//! What is converted: a disk as its chain of files reads, VHDX or VHD, at any layer.

use std::sync::Arc;

use crate::chain::snapshot::walk;
use crate::chain::Chain;
use crate::error::{Error, ErrorKind, PathContext, Result};
use crate::format::metadata::{self, Item};
use crate::guid::Guid;
use crate::image::lookup::Source;
use crate::storage::Storage;
use crate::vhd::VhdChain;

/// Why the extents of a file have no second owner, and what to do about it.
const DIRTY: (&str, &str) = (
    "the log of a file is applied in memory alone",
    "open that file for writing once, or use mode=auto",
);
const LIVE: (&str, &str) = (
    "the disk is open for writing",
    "open it read-only, take a checkpoint and convert the layer below, or use mode=auto",
);

/// Where bytes are kept: equal places hold equal bytes.
pub(crate) struct Place {
    pub(crate) file: Arc<dyn Storage>,
    pub(crate) file_offset: u64,
    /// The layer whose file it is.
    pub(crate) layer: usize,
    /// The file has space for every block, also for zeros.
    pub(crate) is_fixed: bool,
    /// Why its extents may have no other owner, and what to do about it.
    pub(crate) obstacle: Option<(&'static str, &'static str)>,
}

impl Place {
    pub(crate) fn is_same_as(&self, other: &Place) -> bool {
        self.file_offset == other.file_offset && self.file.id().is_some_and(|id| other.file.id() == Some(id))
    }
}

/// The first bytes of a range that share what they are.
pub(crate) struct Run {
    pub(crate) len: u64,
    /// Where they are; `None` is zeros that nobody stores.
    pub(crate) place: Option<Place>,
}

/// What the new disk takes over besides the content.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) logical_sector_size: u32,
    pub(crate) physical_sector_size: u32,
    pub(crate) id: Guid,
    /// Virtual disk items besides the known ones.
    pub(crate) extra: Vec<(Item, Vec<u8>)>,
}

const KNOWN: [Guid; 4] = [
    metadata::VIRTUAL_DISK_SIZE,
    metadata::VIRTUAL_DISK_ID,
    metadata::LOGICAL_SECTOR_SIZE,
    metadata::PHYSICAL_SECTOR_SIZE,
];

/// A disk to read.
pub(crate) trait Content: Sync {
    /// Bytes.
    fn size(&self) -> Result<u64>;
    /// What is at `offset`, a multiple of 512 inside the disk, at most `max` bytes of it.
    fn run(&self, offset: u64, max: u64) -> Result<Run>;
    /// Reads a range inside the disk.
    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()>;
    fn origin(&self) -> Result<Origin>;
}

/// A chain as of one of its layers.
pub(crate) struct Layer<'a> {
    pub(crate) chain: &'a Chain,
    pub(crate) layer: usize,
}

impl Content for Layer<'_> {
    fn size(&self) -> Result<u64> {
        Ok(self.chain.layer(self.layer)?.virtual_size())
    }

    fn run(&self, offset: u64, max: u64) -> Result<Run> {
        let layers = &self.chain.current().layers;
        let found = walk(layers, self.layer, offset, max)?;
        let place = match (found.source, layers.get(found.layer)) {
            (Source::Data { file_offset }, Some(image)) => Some(Place {
                file: image.storage().clone(),
                file_offset,
                layer: found.layer,
                is_fixed: image.is_fixed(),
                obstacle: match (image.is_dirty(), found.layer == 0 && !self.chain.is_read_only()) {
                    (true, _) => Some(DIRTY),
                    (_, true) => Some(LIVE),
                    _ => None,
                },
            }),
            _ => None,
        };
        Ok(Run { len: found.len, place })
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.chain.read_layer(self.layer, buf, offset)
    }

    fn origin(&self) -> Result<Origin> {
        let image = self.chain.layer(self.layer)?;
        let items = image.items();
        let extra = image
            .virtual_disk_items()
            .at(image.name())?
            .into_iter()
            .filter(|(item, _)| item.is_user || !KNOWN.contains(&item.id))
            .collect();
        Ok(Origin {
            logical_sector_size: items.logical_sector_size,
            physical_sector_size: items.physical_sector_size,
            id: items.virtual_disk_id,
            extra,
        })
    }
}

/// A VHD chain as of one of its layers.
pub(crate) struct VhdLayer<'a> {
    pub(crate) chain: &'a VhdChain,
    pub(crate) layer: usize,
}

impl Content for VhdLayer<'_> {
    fn size(&self) -> Result<u64> {
        self.chain
            .layers()
            .get(self.layer)
            .map(|file| file.size())
            .ok_or_else(|| Error::new(ErrorKind::Argument, format!("there is no layer {}", self.layer)))
    }

    fn run(&self, offset: u64, max: u64) -> Result<Run> {
        let (len, found) = self.chain.lookup(self.layer, offset, max)?;
        let place = found.and_then(|(layer, file_offset)| {
            let file = self.chain.layers().get(layer)?;
            Some(Place {
                file: file.storage().clone(),
                file_offset,
                layer,
                is_fixed: file.header().is_none(),
                obstacle: None,
            })
        });
        Ok(Run { len, place })
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.chain.read_layer(self.layer, buf, offset)
    }

    fn origin(&self) -> Result<Origin> {
        Ok(Origin {
            logical_sector_size: 512,
            physical_sector_size: 4096,
            id: self.chain.disk_id(),
            extra: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::ops;
    use crate::options::{CheckpointOptions, CreateOptions, OpenOptions};
    use crate::storage::MemoryFileSystem;
    use crate::units::MIB;

    #[test]
    fn what_may_have_another_owner() {
        let open = OpenOptions::new().on(Arc::new(MemoryFileSystem::new()));
        let create = CreateOptions {
            size: 8 * MIB,
            block_size: MIB as u32,
            open: open.clone(),
            ..CreateOptions::default()
        };
        ops::create(Path::new("/base.vhdx"), &create).unwrap();
        let chain = Chain::open(Path::new("/base.vhdx"), &open).unwrap();
        chain.write(&[1; 8192], 0, false).unwrap();
        ops::checkpoint(&chain, Path::new("/a.avhdx"), &CheckpointOptions::default()).unwrap();
        chain.write(&[2; 4096], 4096, false).unwrap();
        let seen = |chain: &Chain, at: u64| {
            let run = Layer { chain, layer: 0 }.run(at, MIB).unwrap();
            (run.len, run.place.map(|place| place.obstacle.is_some()))
        };
        assert_eq!(seen(&chain, 0), (4096, Some(false)));
        // The leaf, to which somebody may write; and what nobody has.
        assert_eq!(seen(&chain, 4096), (4096, Some(true)));
        assert_eq!(seen(&chain, 4 * MIB), (MIB, None));
        chain.close().unwrap();
        let chain = Chain::open(
            Path::new("/a.avhdx"),
            &OpenOptions {
                read_only: true,
                ..open
            },
        )
        .unwrap();
        assert_eq!(seen(&chain, 4096), (4096, Some(false)));
    }
}
