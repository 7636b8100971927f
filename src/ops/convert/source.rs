//! What is converted: a disk as its chain of files reads, VHDX or VHD, at any layer.

use crate::chain::snapshot::walk;
use crate::chain::Chain;
use crate::error::{Error, ErrorKind, PathContext, Result};
use crate::format::metadata::{self, Item};
use crate::guid::Guid;
use crate::image::lookup::Source;
use crate::storage::FileId;
use crate::vhd::VhdChain;

/// Where bytes are kept: equal places hold equal bytes.
pub(crate) type Place = (Option<FileId>, u64);

/// The first bytes of a range that share what they are.
#[derive(Debug, Clone, Copy)]
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
pub(crate) trait Content {
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
        let snapshot = self.chain.current();
        if self.layer >= snapshot.layers.len() {
            return Err(Error::new(ErrorKind::Argument, "the layer was merged away"));
        }
        let found = walk(&snapshot.layers, self.layer, offset, max)?;
        let place = match found.source {
            Source::Data { file_offset } => {
                let id = snapshot.layers.get(found.layer).and_then(|image| image.storage().id());
                Some((id, file_offset))
            }
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
        let place = found.map(|(layer, at)| (self.chain.layers().get(layer).and_then(|file| file.storage().id()), at));
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
