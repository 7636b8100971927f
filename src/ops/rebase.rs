//! Changing what a leaf depends on without changing what it reads as: another parent, or none (docs/durability.md
//! "Rebase", "Detach").

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::Arc;

use super::layers::{self, check_sectors, readable, same_file};
use super::pace::Pace;
use crate::chain::snapshot::{walk, Walk};
use crate::chain::{open, Chain};
use crate::error::{Error, ErrorKind, IoContext, PathContext, Result};
use crate::format::bat::PayloadState;
use crate::image::fill::{Content, Fill};
use crate::image::lookup::Source;
use crate::image::payload::Payload;
use crate::image::Image;
use crate::options::{OpenOptions, ProgressFn, RebaseOptions};
use crate::storage::{CopyMethod, Order};
use crate::units::{BlockIndex, MIB};

/// Most bytes dealt with between two reports.
const STEP: u64 = 32 * MIB;
/// Bytes compared at once.
const WINDOW: u64 = MIB;

/// What to do after a cancellation.
pub(super) const AGAIN: &str = "the disk reads as before and has the parent it had; run it again to finish";

/// What a rebase or detach did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct RebaseReport {
    /// Bytes written to the leaf.
    pub bytes: u64,
}

/// Puts the leaf on another parent, which may be any disk with the same logical sector size, and copies into the leaf
/// what the new parent does not hold: the disk reads the same before, during and after, and may be used meanwhile. Only
/// the leaf is written. Ranges that both old and new parent take from the same place of the same file are not read.
///
/// DataWriteGuid of the leaf stays: its own children remain valid. Durable on return. After a failure or cancellation
/// the disk is on its old parent, and reads the same.
pub fn rebase(
    chain: &Chain,
    new_parent: &Path,
    options: &RebaseOptions,
    progress: ProgressFn<'_>,
) -> Result<RebaseReport> {
    let _control = chain.control.lock();
    chain.check_writable()?;
    let old = chain.current().layers.clone();
    let leaf = old[0].clone();
    needs_parent(
        &leaf,
        "create a differencing disk on the new parent and copy the content",
    )?;
    let open = chain.options();
    layers::refuse_cycle(open, (&**leaf.storage(), leaf.name()), new_parent, chain.shared())?;
    let parent = readable(new_parent, open, chain.shared())?;
    check_sectors(&leaf, &parent)?;
    let new = open::parents(Arc::new(parent), open, chain.shared())?.layers;
    if new.len() >= open.max_depth {
        let message = format!("the chain would have {} layers", new.len() + 1);
        return Err(Error::new(ErrorKind::ChainLoop, message).with_hint("merge layers, or raise max-depth"));
    }
    let mut filler = Filler::new(
        open,
        &old[1..],
        &new,
        true,
        Pace::new("the rebase", AGAIN, options.rate, progress),
    );
    filler.prepare(&[&leaf])?;
    if Order::FilledBeforeRebase.is_forgotten() {
        layers::relink(open, &leaf, new[0].name(), (new[0].data_write_guid(), None))?;
    }
    filler.fill(&leaf)?;
    let bytes = filler.copied();
    let (name, identity) = (new[0].name().to_path_buf(), new[0].data_write_guid());
    // ORDER: what the leaf gained is durable before it names the new parent.
    leaf.commit()?;
    layers::relink(open, &leaf, &name, (identity, None))?;
    let mut now = vec![leaf];
    now.extend(new);
    chain.switch(now);
    layers::settle_pending(chain);
    Ok(RebaseReport { bytes })
}

/// Makes the leaf a disk without parent, in its own file: copies into it what it has from its parents, which it then no
/// longer needs. The disk may be used meanwhile; writers wait for a moment at the end. Parents are not touched.
///
/// DataWriteGuid of the leaf stays: its own children remain valid. Durable on return. After a failure or cancellation
/// the disk still has its parent, and reads the same; run it again.
pub fn detach(chain: &Chain, options: &RebaseOptions, progress: ProgressFn<'_>) -> Result<RebaseReport> {
    let _control = chain.control.lock();
    chain.check_writable()?;
    let old = chain.current().layers.clone();
    let leaf = old[0].clone();
    needs_parent(&leaf, "it depends on no other file already")?;
    let mut filler = Filler::new(
        chain.options(),
        &old[1..],
        &[],
        false,
        Pace::new("the detach", AGAIN, options.rate, progress),
    );
    filler.prepare(&[&leaf])?;
    if Order::CompletedBeforeBitmaps.is_forgotten() {
        leaf.remove_bitmap_blocks()?;
        leaf.commit()?;
    }
    filler.fill(&leaf)?;
    filler.complete(&leaf)?;
    leaf.commit()?;
    let _no_writes = chain.gate().write();
    // Blocks that a writer began meanwhile. The caller is not asked with writers waiting: it may be one.
    filler.pace.hurry();
    filler.complete(&leaf)?;
    // Readers that still look for bits are to look again.
    chain.refresh();
    // ORDER: no block is partly present when the bitmaps go. They go before the parent does, as a disk without one may
    // have none (MS-VHDX 2.5.1.2); that readers ignore them there.
    leaf.remove_bitmap_blocks()?;
    leaf.commit()?;
    leaf.remove_parent()?;
    let bytes = filler.copied();
    chain.switch(vec![leaf.reopen()?]);
    chain.merge_is_done();
    Ok(RebaseReport { bytes })
}

fn needs_parent(leaf: &Image, hint: &'static str) -> Result<()> {
    match leaf.geometry().is_differencing() {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Argument, "the disk has no parent")
            .with_path(leaf.name())
            .with_hint(hint)),
    }
}

/// Fills images that sit on `old` with what they would lack on `new`; no layers read as zeros.
pub(super) struct Filler<'a> {
    difference: Difference<'a>,
    pace: Pace<'a>,
}

impl<'a> Filler<'a> {
    pub(super) fn new(
        options: &'a OpenOptions,
        old: &'a [Arc<Image>],
        new: &'a [Arc<Image>],
        compare: bool,
        pace: Pace<'a>,
    ) -> Self {
        Filler {
            difference: Difference {
                options,
                old,
                new,
                compare,
                zeros: false,
                handled: 0,
                copied: 0,
                reflinked: AtomicU64::new(0),
                window: None,
                buffers: (Vec::new(), Vec::new()),
            },
            pace,
        }
    }

    /// Learns how much there is to do, and refuses before the first byte when there is no room for it.
    pub(super) fn prepare(&mut self, images: &[&Image]) -> Result<()> {
        for image in images {
            let bytes = self.bytes_for(image)?;
            self.pace.expect(self.pace.now().total + bytes);
            let available = image.storage().available_space().unwrap_or(None);
            // How much of what is compared must be copied is not known.
            if let Some(available) = available.filter(|&a| a < bytes && !self.difference.compare) {
                let message = format!("{} may need {bytes} bytes and {available} are free", self.pace.what());
                return Err(Error::new(ErrorKind::NoSpace, message)
                    .with_path(image.name())
                    .with_hint("make room on the file system of this file"));
            }
        }
        // There may be nothing to copy, and no other question.
        self.pace.ask()
    }

    fn bytes_for(&mut self, image: &Image) -> Result<u64> {
        self.pace.turn_to(image.name());
        let (mut at, mut bytes) = (0, 0);
        while at < image.virtual_size() {
            let found = image.lookup(at, image.virtual_size() - at).at(image.name())?;
            self.pace.pass(found.len)?;
            let end = at + found.len;
            if found.source != Source::Transparent {
                at = end;
            }
            while at < end {
                let (len, what) = self.difference.between(at, end - at)?;
                if matches!(what, Between::Differs(..)) {
                    bytes += len;
                }
                at += len;
            }
        }
        Ok(bytes)
    }

    /// One pass over the image. It may be written meanwhile: what was filled does not become transparent again.
    pub(super) fn fill(&mut self, image: &Image) -> Result<()> {
        self.pace.turn_to(image.name());
        self.difference.zeros = false;
        for block in (0..image.geometry().block_count()).map(BlockIndex) {
            match image.may_be_transparent(block)? {
                true => self.fill_block(image, block)?,
                false => self.pace.pass(image.geometry().block_len(block))?,
            }
        }
        Ok(())
    }

    /// Makes every partly present block fully present.
    fn complete(&mut self, image: &Image) -> Result<()> {
        self.difference.zeros = true;
        for block in (0..image.geometry().block_count()).map(BlockIndex) {
            if image.is_partial(block)? {
                self.fill_block(image, block)?;
                image.make_fully_present(block)?;
            }
        }
        Ok(())
    }

    fn fill_block(&mut self, image: &Image, block: BlockIndex) -> Result<()> {
        let geometry = *image.geometry();
        let mut at = geometry.block_start(block);
        let end = at + geometry.block_len(block);
        while at < end {
            let len = (end - at).min(STEP);
            image.fill(at, len, &mut self.difference)?;
            at += len;
            match std::mem::take(&mut self.difference.handled) {
                0 => self.pace.pass(len)?,
                handled => self.pace.advance(handled, handled)?,
            }
        }
        Ok(())
    }

    pub(super) fn copied(&self) -> u64 {
        self.difference.copied
    }
}

/// How two places for a range differ.
enum Between {
    /// They are the same place, or both zeros.
    Same,
    /// Both read as zeros without holding anything.
    Zeros,
    /// Perhaps, by where they are.
    Differs(Walk, Walk),
}

/// What the layers `old` hold and `new` do not.
struct Difference<'a> {
    options: &'a OpenOptions,
    old: &'a [Arc<Image>],
    new: &'a [Arc<Image>],
    /// Read both and copy only what differs.
    compare: bool,
    /// Also put zeros where neither holds anything.
    zeros: bool,
    /// Bytes compared or copied that the pace does not know of yet.
    handled: u64,
    copied: u64,
    reflinked: AtomicU64,
    /// The range of the disk that the buffers hold.
    window: Option<(u64, u64)>,
    buffers: (Vec<u8>, Vec<u8>),
}

fn source_of(layers: &[Arc<Image>], offset: u64, len: u64) -> Result<Walk> {
    if layers.is_empty() {
        let source = Source::Zero(PayloadState::NotPresent);
        return Ok(Walk { len, layer: 0, source });
    }
    walk(layers, 0, offset, len)
}

fn read(layers: &[Arc<Image>], found: &Walk, skip: u64, buf: &mut [u8]) -> Result<()> {
    match found.source {
        Source::Data { file_offset } => layers[found.layer]
            .view()
            .read_at(buf, file_offset + skip)
            .context(|| format!("read at file offset {:#x}", file_offset + skip))
            .at(layers[found.layer].name()),
        _ => {
            buf.fill(0);
            Ok(())
        }
    }
}

impl Difference<'_> {
    fn between(&self, offset: u64, max: u64) -> Result<(u64, Between)> {
        let a = source_of(self.old, offset, max)?;
        let b = source_of(self.new, offset, a.len)?;
        let between = match (a.source, b.source) {
            (Source::Data { file_offset: x }, Source::Data { file_offset: y }) => {
                let (one, other) = (&self.old[a.layer], &self.new[b.layer]);
                let file = |image: &'_ Arc<Image>| (image.storage().clone(), image.name().to_path_buf());
                let same = x == y && {
                    let (one, other) = (file(one), file(other));
                    same_file(self.options, (&*one.0, &one.1), (&*other.0, &other.1))
                };
                match same {
                    true => Between::Same,
                    false => Between::Differs(a, b),
                }
            }
            (Source::Data { .. }, _) | (_, Source::Data { .. }) => Between::Differs(a, b),
            _ => Between::Zeros,
        };
        Ok((b.len, between))
    }

    /// Whether the first bytes of the range differ, and how many share that, in whole sectors.
    fn compare(&mut self, offset: u64, len: u64, a: &Walk, b: &Walk) -> Result<(u64, bool)> {
        let known = self
            .window
            .filter(|&(start, len)| offset >= start && offset < start + len);
        let (start, held) = match known {
            Some(window) => window,
            None => {
                let len = len.min(WINDOW);
                // Forgotten first: a failed read leaves neither.
                self.window = None;
                self.buffers.0.resize(len as usize, 0);
                self.buffers.1.resize(len as usize, 0);
                read(self.old, a, 0, &mut self.buffers.0)?;
                read(self.new, b, 0, &mut self.buffers.1)?;
                self.window = Some((offset, len));
                (offset, len)
            }
        };
        let skip = (offset - start) as usize;
        let len = len.min(held - skip as u64) as usize;
        let sector = self.old[0].geometry().sector_size() as usize;
        let pairs = || {
            let (a, b) = (&self.buffers.0[skip..skip + len], &self.buffers.1[skip..skip + len]);
            a.chunks(sector).zip(b.chunks(sector))
        };
        let differs = pairs().next().is_some_and(|(a, b)| a != b);
        let sectors = pairs().take_while(|(a, b)| (a != b) == differs).count();
        Ok(((sectors * sector).min(len) as u64, differs))
    }
}

impl Content for Difference<'_> {
    fn at(&mut self, offset: u64, max: u64) -> Result<(u64, Fill<'_>)> {
        let (len, between) = self.between(offset, max)?;
        let (a, b) = match between {
            Between::Same => return Ok((len, Fill::Leave)),
            Between::Zeros if self.zeros => return Ok((len, Fill::Zero)),
            Between::Zeros => return Ok((len, Fill::Leave)),
            Between::Differs(a, b) => (a, b),
        };
        let mut len = len;
        if self.compare {
            let (same, differs) = self.compare(offset, len, &a, &b)?;
            len = same;
            self.handled += len;
            if !differs {
                return Ok((len, Fill::Leave));
            }
            self.copied += len;
            if matches!(a.source, Source::Data { .. }) {
                let start = self.window.map_or(offset, |(start, _)| start);
                let skip = (offset - start) as usize;
                return Ok((
                    len,
                    Fill::Put(Payload::Bytes(&self.buffers.0[skip..skip + len as usize])),
                ));
            }
            return Ok((len, Fill::Zero));
        }
        self.handled += len;
        let Source::Data { file_offset } = a.source else {
            return Ok((len, Fill::Zero));
        };
        self.copied += len;
        let image = &self.old[a.layer];
        Ok((
            len,
            Fill::Put(Payload::Copy {
                source: image.view(),
                raw: (!image.is_dirty()).then_some(&**image.storage()),
                file_offset,
                len,
                methods: &[CopyMethod::Reflink, CopyMethod::Offload],
                reflinked: &self.reflinked,
            }),
        ))
    }
}
