//! Putting content where a differencing disk is transparent, so that it needs its parent less (docs/durability.md
//! "Filling"). The disk reads as before, so DataWriteGuid stays and its own children stay valid.

use super::change::{Bits, Held};
use super::payload::Payload;
use super::{Image, WriteMode};
use crate::error::{Error, ErrorKind, PathContext, Result};
use crate::format::bat::{BitmapEntry, PayloadEntry, PayloadState};
use crate::format::bitmap;
use crate::image::lookup::Source;
use crate::units::{BlockIndex, ChunkIndex};

/// What a transparent range becomes.
pub(crate) enum Fill<'a> {
    /// It stays transparent.
    Leave,
    /// Zeros.
    Zero,
    /// This content.
    Put(Payload<'a>),
}

/// Answers what transparent ranges are to hold: what the disk reads as there.
pub(crate) trait Content {
    /// For the first bytes at `offset`, and how many share it: at least one sector, at most `max`. Called with the block
    /// claimed.
    fn at(&mut self, offset: u64, max: u64) -> Result<(u64, Fill<'_>)>;
}

const NO_BITMAP: BitmapEntry = BitmapEntry {
    present: false,
    file_offset: 0,
};

impl Image {
    /// Fills what is transparent in `[offset, offset + len)`, which lies in one block. The disk may be in use: a sector
    /// is filled only while nobody writes to its block, and only if nobody wrote it before.
    pub(crate) fn fill(&self, offset: u64, len: u64, content: &mut dyn Content) -> Result<()> {
        self.fill_inner(offset, len, content).at(self.name())
    }

    fn fill_inner(&self, offset: u64, len: u64, content: &mut dyn Content) -> Result<()> {
        let geometry = *self.geometry();
        let block = geometry.block_of(offset);
        let writer = self.begin(WriteMode::File)?;
        let _claim = writer.claims.exclusive(block);
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let found = self.lookup(at, end - at)?;
            if found.source != Source::Transparent {
                at += found.len;
                continue;
            }
            let (len, fill) = content.at(at, found.len)?;
            match fill {
                Fill::Leave => {}
                Fill::Put(payload) => self.write_claimed(writer, block, at, payload)?,
                Fill::Zero if len == geometry.block_len(block) => {
                    self.retire(writer, block, self.payload(block)?, PayloadState::Zero)?;
                }
                Fill::Zero => self.write_claimed(writer, block, at, Payload::Zeros(len))?,
            }
            at += len;
        }
        Ok(())
    }

    /// Whether something in the block may be transparent.
    pub(crate) fn may_be_transparent(&self, block: BlockIndex) -> Result<bool> {
        let state = self.payload(block).at(self.name())?.state;
        Ok(matches!(
            state,
            PayloadState::NotPresent | PayloadState::PartiallyPresent
        ))
    }

    pub(crate) fn is_partial(&self, block: BlockIndex) -> Result<bool> {
        Ok(self.payload(block).at(self.name())?.state == PayloadState::PartiallyPresent)
    }

    /// Makes a partly present block, of which every sector is there, fully present.
    pub(crate) fn make_fully_present(&self, block: BlockIndex) -> Result<()> {
        self.make_fully_present_inner(block).at(self.name())
    }

    fn make_fully_present_inner(&self, block: BlockIndex) -> Result<()> {
        let geometry = *self.geometry();
        let writer = self.begin(WriteMode::File)?;
        let _claim = writer.claims.exclusive(block);
        let entry = self.payload(block)?;
        if entry.state != PayloadState::PartiallyPresent {
            return Ok(());
        }
        let Bits { chunk, first, count } = self.bits_of(geometry.block_start(block), geometry.block_len(block));
        if bitmap::run_length(|word| self.bitmap_word(chunk, word), first, first + count)? != (true, count) {
            return Err(Error::new(
                ErrorKind::Bug,
                "a filled block is still transparent in part",
            ));
        }
        let held = Held::default().block(self, block)?;
        let _room = self.reserve(writer, held.len())?;
        let mut change = self.change(writer, held)?;
        change.set_payload(
            block,
            PayloadEntry {
                state: PayloadState::FullyPresent,
                ..entry
            },
        );
        drop(change);
        self.completed(writer);
        Ok(())
    }

    /// Takes the sector bitmap blocks away; no block is partly present. Their space is not given to anybody before the
    /// next open (I5).
    pub(crate) fn remove_bitmap_blocks(&self) -> Result<()> {
        let writer = self.begin(WriteMode::File).at(self.name())?;
        for chunk in (0..self.geometry().chunk_count()).map(ChunkIndex) {
            if !self.bitmap_block(chunk).at(self.name())?.present {
                continue;
            }
            let index = self.geometry().bitmap_index(chunk);
            let held = Held::default().bat(self, index.0).at(self.name())?;
            let _room = self.reserve(writer, held.len()).at(self.name())?;
            self.change(writer, held)
                .at(self.name())?
                .set_bitmap_block(chunk, NO_BITMAP);
            self.completed(writer);
        }
        Ok(())
    }
}
