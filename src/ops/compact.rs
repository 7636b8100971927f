//! Giving back the space a disk does not need (docs/durability.md "Compact").
//!
//! ```text
//!   1  scan       blocks that read as zeros, and places kept by trimmed blocks, are given up
//!   2  move       blocks from the end of the file go into the holes, round by round, until none moves
//!   3  settle     sector bitmaps nobody needs are given up, others move; the log is emptied and the file cut
//! ```
//!
//! Reading and writing go on in 1 and 2; writes wait for the few flushes of 3. Nothing reads differently, so
//! DataWriteGuid stays and children of the file stay valid.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;

use super::pace::Pace;
use crate::chain::{disk_type, Chain};
use crate::error::{Error, ErrorKind, IoContext, PathContext, Result};
use crate::format::bat::PayloadState;
use crate::image::compact::is_zero;
use crate::image::Image;
use crate::options::{CompactMode, CompactOptions, DiskType, ProgressFn};
use crate::units::{BlockIndex, MIB};

/// Why a file is not shorter still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Obstacle {
    /// Blocks were not to be moved.
    NotMoved,
    /// A structure that stays where it is, the block allocation table for one, is the last of the file.
    Metadata,
    /// The holes are smaller than a block.
    SmallHoles,
}

/// What compacting did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct CompactReport {
    /// The file.
    #[serde(serialize_with = "crate::json::path")]
    pub filename: PathBuf,
    /// Its length before, in bytes.
    pub size_before: u64,
    /// Its length now, in bytes.
    pub size_after: u64,
    /// Blocks that read as zeros and gave up their space.
    pub zero_blocks: u64,
    /// Blocks that were trimmed before and still had space.
    pub trimmed_blocks: u64,
    /// Blocks that moved.
    pub moved_blocks: u64,
    /// Sector bitmaps given up.
    pub released_bitmaps: u64,
    /// Bytes inside the file that nobody owns.
    pub free_bytes: u64,
    /// Why those are still inside.
    pub obstacle: Option<Obstacle>,
    /// Blocks that hold only some of their sectors, and take the space of all.
    pub partial_blocks: u64,
}

/// Makes the leaf's file as short as it can be without changing what the disk reads as, while the disk is in use. It
/// takes no more space than the log does. See [`CompactMode`] for what is looked at.
///
/// A fixed disk is refused (`Unsupported`). A failure or cancellation leaves a disk that reads the same, and what was
/// reclaimed so far stays reclaimed. On return everything is durable.
pub fn compact(chain: &Chain, options: &CompactOptions, progress: ProgressFn<'_>) -> Result<CompactReport> {
    let _control = chain.control.lock();
    chain.check_writable()?;
    let leaf = chain.layer(0)?;
    if disk_type(&leaf.items()) == DiskType::Fixed {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "a fixed disk keeps the space of all of its blocks",
        )
        .with_path(leaf.name())
        .with_hint("convert it to a dynamic disk, which leaves zeros out"));
    }
    let hint = "run it again to go on; what was reclaimed stays reclaimed";
    let mut work = Work {
        chain,
        pace: Pace::new("compacting", hint, options.rate, progress).of(leaf.name()),
        read: Cell::new(0),
        report: CompactReport {
            filename: leaf.name().to_path_buf(),
            size_before: length(&leaf)?,
            ..CompactReport::default()
        },
    };
    work.scan(options.mode)?;
    work.shorten(options.mode)?;
    Ok(work.report)
}

fn length(image: &Image) -> Result<u64> {
    image
        .storage()
        .len()
        .context(|| "get the file length".into())
        .at(image.name())
}

struct Work<'a, 'p> {
    chain: &'a Chain,
    /// Kept to with no claim and no gate held.
    pace: Pace<'p>,
    /// Bytes read that the pace does not know of yet.
    read: Cell<u64>,
    report: CompactReport,
}

impl Work<'_, '_> {
    fn leaf(&self) -> Arc<Image> {
        self.chain.current().leaf().clone()
    }

    /// The file is as memory is, with an empty log. The caller keeps writers out.
    fn clean(&self) -> Result<Arc<Image>> {
        let leaf = self.leaf();
        leaf.clean_keeping_mode()?;
        Ok(leaf)
    }

    /// Step 1.
    fn scan(&mut self, mode: CompactMode) -> Result<()> {
        let leaf = {
            let _no_writes = self.chain.gate().write();
            self.clean()?
        };
        let usage = leaf.usage()?;
        let block_size = leaf.geometry().block_size();
        let reading = mode != CompactMode::Quick;
        if reading {
            self.pace.expect(usage.used);
        }
        leaf.for_each_block(|block| {
            let present;
            {
                let _writing = self.chain.gate().read();
                self.report.trimmed_blocks += u64::from(leaf.drop_anchor(block)?);
                present = reading && leaf.payload(block).at(leaf.name())?.state.is_present();
                // Looked at twice: writers to the block wait only if it is worth it.
                if present && self.reads_zero(&leaf, block)? {
                    let zero = leaf.release_zero_block(block, || self.reads_zero(&leaf, block))?;
                    self.report.zero_blocks += u64::from(zero);
                } else if present && mode == CompactMode::Full {
                    leaf.complete_block(block)?;
                }
            }
            match present {
                true => self.pace.advance(block_size, self.read.take()),
                false => self.pace.pass(block_size),
            }
        })?;
        leaf.commit()
    }

    /// Whether the disk reads as zeros in the block, through all layers. Certain only with the block claimed.
    fn reads_zero(&self, leaf: &Image, block: BlockIndex) -> Result<bool> {
        let geometry = leaf.geometry();
        let (start, len) = (geometry.block_start(block), geometry.block_len(block));
        let entry = leaf.payload(block).at(leaf.name())?;
        if entry.state == PayloadState::FullyPresent {
            let data = leaf
                .storage()
                .next_data(entry.file_offset, entry.file_offset + len)
                .context(|| "look for data in a block".into())
                .at(leaf.name())?;
            if data.is_none() {
                return Ok(true);
            }
        }
        let snapshot = self.chain.current();
        // Most blocks show in their first bytes that they are not zero.
        let mut buf = vec![0; MIB.min(len) as usize];
        let (mut at, mut piece) = (0, 4096);
        while at < len {
            let n = piece.min(len - at);
            let part = &mut buf[..n as usize];
            snapshot.read(part, start + at)?;
            self.read.set(self.read.get() + n);
            if !is_zero(part) {
                return Ok(false);
            }
            at += n;
            piece = MIB;
        }
        Ok(true)
    }

    /// Steps 2 and 3.
    fn shorten(&mut self, mode: CompactMode) -> Result<()> {
        loop {
            let target = self.settle(mode)?;
            if mode == CompactMode::Prezeroed || self.move_blocks(target)? == 0 {
                break;
            }
        }
        let _no_writes = self.chain.gate().write();
        let leaf = self.clean()?;
        leaf.trim()?;
        leaf.commit()?;
        self.conclude(&leaf, mode)
    }

    /// Step 3. Where the file would end if it had no holes.
    fn settle(&mut self, mode: CompactMode) -> Result<u64> {
        let _no_writes = self.chain.gate().write();
        let leaf = self.clean()?;
        let target = match mode {
            CompactMode::Prezeroed => u64::MAX,
            _ => leaf.usage()?.used,
        };
        let (released, moved) = leaf.settle_bitmaps(target)?;
        if released + moved > 0 {
            self.report.released_bitmaps += released;
            self.chain.replace(0, leaf.reopen()?);
        }
        Ok(self.leaf().usage()?.used)
    }

    /// A round of step 2: how many blocks moved. Their old places are free in the next round.
    fn move_blocks(&mut self, target: u64) -> Result<u64> {
        let leaf = self.leaf();
        let block_size = leaf.geometry().block_size();
        let mut high = Vec::new();
        leaf.for_each_block(|block| {
            let entry = leaf.payload(block).at(leaf.name())?;
            if entry.has_space() && entry.file_offset + block_size > target {
                high.push((entry.file_offset, block));
            }
            Ok(())
        })?;
        high.sort_unstable();
        let done = self.pace.now().done;
        self.pace.expect(done + high.len() as u64 * block_size);
        let (mut moved, mut from) = (0, 0);
        for (_, block) in high.into_iter().rev() {
            let place = {
                let _writing = self.chain.gate().read();
                leaf.move_block_down(block, from, target)?
            };
            let Some(place) = place else { continue };
            moved += 1;
            from = place + block_size;
            self.pace.advance(block_size, block_size)?;
        }
        self.report.moved_blocks += moved;
        leaf.commit()?;
        Ok(moved)
    }

    fn conclude(&mut self, leaf: &Image, mode: CompactMode) -> Result<()> {
        let usage = leaf.usage()?;
        let report = &mut self.report;
        report.size_after = length(leaf)?;
        report.free_bytes = usage.end.saturating_sub(usage.used);
        let mut last_block_end = 0;
        leaf.for_each_block(|block| {
            let entry = leaf.payload(block)?;
            report.partial_blocks += u64::from(entry.state == PayloadState::PartiallyPresent);
            if entry.has_space() {
                last_block_end = last_block_end.max(entry.file_offset + leaf.geometry().block_size());
            }
            Ok(())
        })
        .at(leaf.name())?;
        report.obstacle = match report.free_bytes {
            0 => None,
            _ if mode == CompactMode::Prezeroed => Some(Obstacle::NotMoved),
            _ if last_block_end < usage.end => Some(Obstacle::Metadata),
            _ => Some(Obstacle::SmallHoles),
        };
        Ok(())
    }
}
