//! What is converted: a disk as its chain of files reads, VHDX or VHD, at any layer.

use std::sync::Arc;

use crate::chain::snapshot::{walk, Snapshot, Walk};
use crate::chain::Chain;
use crate::error::{Error, ErrorKind, PathContext, Result};
use crate::format::metadata::{self, Item};
use crate::guid::Guid;
use crate::image::lookup::Source;
use crate::storage::{FileId, Storage};
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

/// A run in a file that may share it.
pub(crate) struct Held<'a> {
    pub(crate) file: &'a dyn Storage,
    pub(crate) file_offset: u64,
    pub(crate) len: u64,
    /// It is better copied: it may well be zeros, or be written to.
    pub(crate) is_better_copied: bool,
}

/// What came of an attempt to share a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    Done,
    None,
    /// Space changed its owner meanwhile: anything may have been shared.
    Wrong,
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
    /// Hands the run at `offset`, of at most `max` bytes, to `share` if it is in a file and there as it reads; `share`
    /// tells whether it could, if it tried. The length of the run, and what came of it.
    fn share(
        &self,
        offset: u64,
        max: u64,
        share: &mut dyn FnMut(&Held<'_>) -> Result<Option<bool>>,
    ) -> Result<(u64, Sharing)>;
    /// Reads a range inside the disk.
    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()>;
    fn origin(&self) -> Result<Origin>;
}

/// A chain as of one of its layers.
pub(crate) struct Layer<'a> {
    pub(crate) chain: &'a Chain,
    pub(crate) layer: usize,
}

impl Layer<'_> {
    fn walk(&self, offset: u64, max: u64) -> Result<(Arc<Snapshot>, Walk)> {
        let snapshot = self.chain.current();
        if self.layer >= snapshot.layers.len() {
            return Err(Error::new(ErrorKind::Argument, "the layer was merged away"));
        }
        let found = walk(&snapshot.layers, self.layer, offset, max)?;
        Ok((snapshot, found))
    }
}

impl Content for Layer<'_> {
    fn size(&self) -> Result<u64> {
        Ok(self.chain.layer(self.layer)?.virtual_size())
    }

    fn run(&self, offset: u64, max: u64) -> Result<Run> {
        let (snapshot, found) = self.walk(offset, max)?;
        let place = match found.source {
            Source::Data { file_offset } => {
                let id = snapshot.layers.get(found.layer).and_then(|image| image.storage().id());
                Some((id, file_offset))
            }
            _ => None,
        };
        Ok(Run { len: found.len, place })
    }

    fn share(
        &self,
        offset: u64,
        max: u64,
        share: &mut dyn FnMut(&Held<'_>) -> Result<Option<bool>>,
    ) -> Result<(u64, Sharing)> {
        let (mut len, mut tried) = (max, None);
        let unchanged = self.chain.shared().reuse.unchanged(|| {
            let (snapshot, found) = self.walk(offset, max)?;
            len = found.len;
            let image = &snapshot.layers[found.layer];
            if let (Source::Data { file_offset }, false) = (found.source, image.is_dirty()) {
                tried = share(&Held {
                    file: &**image.storage(),
                    file_offset,
                    len,
                    is_better_copied: image.is_fixed() || found.layer == 0 && !self.chain.is_read_only(),
                })?;
            }
            Ok(())
        });
        match (unchanged, tried) {
            (Some(Err(error)), _) => Err(error),
            (Some(Ok(())), Some(true)) => Ok((len, Sharing::Done)),
            // Also if it could not: a part may be there.
            (None, Some(_)) => Ok((len, Sharing::Wrong)),
            _ => Ok((len, Sharing::None)),
        }
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

    fn share(
        &self,
        offset: u64,
        max: u64,
        share: &mut dyn FnMut(&Held<'_>) -> Result<Option<bool>>,
    ) -> Result<(u64, Sharing)> {
        let (len, found) = self.chain.lookup(self.layer, offset, max)?;
        let Some((layer, file_offset)) = found else {
            return Ok((len, Sharing::None));
        };
        let file = &self.chain.layers()[layer];
        let tried = share(&Held {
            file: &**file.storage(),
            file_offset,
            len,
            is_better_copied: file.header().is_none(),
        })?;
        Ok((
            len,
            match tried {
                Some(true) => Sharing::Done,
                _ => Sharing::None,
            },
        ))
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
    fn who_shares_and_what_comes_of_it() {
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
        let source = Layer {
            chain: &chain,
            layer: 0,
        };
        let share = |at: u64, result: Option<bool>, reused: bool| {
            let mut better_copied = None;
            let shared = source.share(at, MIB, &mut |held| {
                better_copied = Some(held.is_better_copied);
                if reused {
                    chain.shared().reuse.announce();
                }
                Ok(result)
            });
            (shared.unwrap(), better_copied)
        };
        assert_eq!(share(0, Some(true), false), ((4096, Sharing::Done), Some(false)));
        assert_eq!(share(0, Some(false), false), ((4096, Sharing::None), Some(false)));
        assert_eq!(share(0, Some(true), true), ((4096, Sharing::Wrong), Some(false)));
        assert_eq!(share(0, Some(false), true), ((4096, Sharing::Wrong), Some(false)));
        assert_eq!(share(0, None, true), ((4096, Sharing::None), Some(false)));
        // The leaf, to which somebody may write; and what nobody has.
        assert_eq!(share(4096, Some(true), false), ((4096, Sharing::Done), Some(true)));
        assert_eq!(share(4 * MIB, Some(true), false), ((MIB, Sharing::None), None));
        chain.close().unwrap();
        let chain = Chain::open(
            Path::new("/a.avhdx"),
            &OpenOptions {
                read_only: true,
                ..open
            },
        )
        .unwrap();
        let source = Layer {
            chain: &chain,
            layer: 0,
        };
        let shared = source.share(4096, MIB, &mut |held| Ok(Some(!held.is_better_copied)));
        assert_eq!(shared.unwrap(), (4096, Sharing::Done));
    }
}
