//! Units and the arithmetic of the block allocation table (MS-VHDX 2.5; formulas in §3 of the format notes).
//!
//! Offsets and lengths are bytes in `u64`: `offset` on the virtual disk, `file_offset` in a file. Indexes that are
//! easily mistaken for one another are types.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

use crate::error::{Defect, Rule};

/// Kibibyte.
pub const KIB: u64 = 1 << 10;
/// Mebibyte: the allocation unit of the format.
pub const MIB: u64 = 1 << 20;
/// Gibibyte.
pub const GIB: u64 = 1 << 30;
/// Tebibyte.
pub const TIB: u64 = 1 << 40;
/// The unit of logging: BAT, bitmaps and metadata change in sectors of this many bytes.
pub const LOG_SECTOR: u64 = 4096;
/// Sectors covered by one sector bitmap block.
pub const SECTORS_PER_CHUNK: u64 = 1 << 23;
/// Largest virtual disk, in bytes.
pub const MAX_VIRTUAL_SIZE: u64 = 64 * TIB;
/// Smallest and largest payload block, in bytes.
pub const BLOCK_SIZE_RANGE: std::ops::RangeInclusive<u32> = (1 << 20)..=(256 << 20);

/// Index of a payload block on the virtual disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u64);

/// Index of a chunk: the range of the virtual disk that one sector bitmap block covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u64);

/// Index of an entry in the BAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatIndex(pub u64);

/// What a BAT entry locates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatSlot {
    /// A payload block.
    Payload(BlockIndex),
    /// The sector bitmap block of a chunk.
    Bitmap(ChunkIndex),
}

/// Rounds up to a multiple of `unit` (a power of two); `None` on overflow.
pub const fn align_up(value: u64, unit: u64) -> Option<u64> {
    match value.checked_add(unit.wrapping_sub(1)) {
        Some(v) => Some(align_down(v, unit)),
        None => None,
    }
}

/// Rounds down to a multiple of `unit` (a power of two).
pub const fn align_down(value: u64, unit: u64) -> u64 {
    value & !unit.wrapping_sub(1)
}

/// The sizes that fix the layout of a virtual disk in its file. All checked at construction; the methods cannot
/// overflow for offsets within the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    virtual_size: u64,
    block_shift: u32,
    sector_shift: u32,
    /// Of the payload blocks per sector bitmap block: 16 to 32768 of them.
    ratio_shift: u32,
    differencing: bool,
}

impl Geometry {
    /// Checks the three sizes against the rules of §2.6.2; `offset` is where they were read, for the report.
    pub fn new(
        virtual_size: u64,
        block_size: u32,
        sector_size: u32,
        differencing: bool,
        offset: u64,
    ) -> Result<Self, Defect> {
        if !block_size.is_power_of_two() || !BLOCK_SIZE_RANGE.contains(&block_size) {
            return Err(Defect::new(
                Rule::FileParameters,
                "file parameters",
                offset,
                format!("block size {block_size}"),
                "a power of two from 1 MiB to 256 MiB",
            ));
        }
        if sector_size != 512 && sector_size != 4096 {
            return Err(Defect::new(
                Rule::SectorSize,
                "logical sector size",
                offset,
                sector_size.to_string(),
                "512 or 4096",
            ));
        }
        if virtual_size == 0
            || virtual_size > MAX_VIRTUAL_SIZE
            || align_down(virtual_size, u64::from(sector_size)) != virtual_size
        {
            return Err(Defect::new(
                Rule::DiskSize,
                "virtual disk size",
                offset,
                virtual_size.to_string(),
                "a multiple of the logical sector size, at most 64 TiB, not 0",
            ));
        }
        let (block_shift, sector_shift) = (block_size.trailing_zeros(), sector_size.trailing_zeros());
        Ok(Geometry {
            virtual_size,
            block_shift,
            sector_shift,
            ratio_shift: (SECTORS_PER_CHUNK.trailing_zeros().saturating_add(sector_shift)).saturating_sub(block_shift),
            differencing,
        })
    }

    /// Bytes of the virtual disk.
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// Bytes of a payload block.
    pub fn block_size(&self) -> u64 {
        1 << self.block_shift
    }

    /// Bytes of a logical sector, 512 or 4096.
    pub fn sector_size(&self) -> u64 {
        1 << self.sector_shift
    }

    /// Whether the disk has a parent.
    pub fn is_differencing(&self) -> bool {
        self.differencing
    }

    /// Bytes of the virtual disk covered by one sector bitmap block.
    pub fn chunk_size(&self) -> u64 {
        SECTORS_PER_CHUNK << self.sector_shift
    }

    /// Payload blocks per sector bitmap block.
    pub fn chunk_ratio(&self) -> u64 {
        1 << self.ratio_shift
    }

    /// Number of payload blocks.
    pub fn block_count(&self) -> u64 {
        self.virtual_size.div_ceil(self.block_size())
    }

    /// Number of chunks.
    pub fn chunk_count(&self) -> u64 {
        self.block_count().div_ceil(self.chunk_ratio())
    }

    /// BAT entries the disk needs. SPEC: 2.5: ends with the last payload entry, or, for a differencing disk, with the
    /// last sector bitmap entry.
    pub fn bat_entries(&self) -> u64 {
        if self.differencing {
            self.chunk_count().saturating_mul(self.chunk_ratio().saturating_add(1))
        } else {
            let blocks = self.block_count();
            blocks.saturating_add(blocks.saturating_sub(1) >> self.ratio_shift)
        }
    }

    /// Smallest BAT region in bytes (a multiple of 1 MiB).
    pub fn bat_region_len(&self) -> u64 {
        let len = self.bat_entries().saturating_mul(8);
        align_up(len, MIB).unwrap_or(len)
    }

    /// The block that holds virtual `offset`.
    pub fn block_of(&self, offset: u64) -> BlockIndex {
        BlockIndex(offset >> self.block_shift)
    }

    /// Virtual offset of the first byte of `block`.
    pub fn block_start(&self, block: BlockIndex) -> u64 {
        block.0 << self.block_shift
    }

    /// Bytes from the start of its block to virtual `offset`.
    pub fn in_block(&self, offset: u64) -> u64 {
        offset & (self.block_size().wrapping_sub(1))
    }

    /// Bytes of `block` that lie on the virtual disk: less than a block for the last one.
    pub fn block_len(&self, block: BlockIndex) -> u64 {
        self.block_size()
            .min(self.virtual_size.saturating_sub(self.block_start(block)))
    }

    /// The chunk of `block`.
    pub fn chunk_of(&self, block: BlockIndex) -> ChunkIndex {
        ChunkIndex(block.0 >> self.ratio_shift)
    }

    /// BAT index of `block`.
    pub fn payload_index(&self, block: BlockIndex) -> BatIndex {
        BatIndex(block.0.saturating_add(block.0 >> self.ratio_shift))
    }

    /// BAT index of the sector bitmap block of `chunk`.
    pub fn bitmap_index(&self, chunk: ChunkIndex) -> BatIndex {
        let ratio = self.chunk_ratio();
        BatIndex(chunk.0.saturating_mul(ratio.saturating_add(1)).saturating_add(ratio))
    }

    /// What the BAT entry at `index` locates. `index` below [`Geometry::bat_entries`]; a slot past the last block of a
    /// differencing disk is a payload slot of a block that does not exist (compare with [`Geometry::block_count`]).
    pub fn slot(&self, index: BatIndex) -> BatSlot {
        let ratio = self.chunk_ratio();
        // Not 0, but the divisor must be seen not to be.
        let slots = std::num::NonZeroU64::MIN.saturating_add(ratio);
        let (group, position) = (index.0 / slots, index.0 % slots);
        if position == ratio {
            BatSlot::Bitmap(ChunkIndex(group))
        } else {
            BatSlot::Payload(BlockIndex((group << self.ratio_shift).saturating_add(position)))
        }
    }

    /// Sector of virtual `offset` counted from the start of its chunk: the bit number in the sector bitmap.
    pub fn bit_of(&self, offset: u64) -> u64 {
        (offset >> self.sector_shift) & (SECTORS_PER_CHUNK - 1)
    }

    /// Bytes of sector bitmap per payload block.
    pub fn bitmap_bytes_per_block(&self) -> u64 {
        (self.block_size() >> self.sector_shift) / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(virtual_size: u64, block_size: u64, sector_size: u32, differencing: bool) -> Geometry {
        Geometry::new(virtual_size, block_size as u32, sector_size, differencing, 0).unwrap()
    }

    #[test]
    fn entry_counts_match_the_worked_examples() {
        // (virtual size, block size, sector size) -> (chunk ratio, blocks, chunks, dynamic entries, differencing entries)
        for ((vs, bs, lss), (cr, npb, nsb, dynamic, differencing)) in [
            ((64 * TIB, MIB, 512), (4096, 67_108_864, 16_384, 67_125_247, 67_125_248)),
            (
                (64 * TIB, MIB, 4096),
                (32768, 67_108_864, 2_048, 67_110_911, 67_110_912),
            ),
            ((64 * TIB, 256 * MIB, 512), (16, 262_144, 16_384, 278_527, 278_528)),
            ((127 * GIB, 32 * MIB, 512), (128, 4_064, 32, 4_095, 4_128)),
            ((8 * GIB, 2 * MIB, 512), (2048, 4_096, 2, 4_097, 4_098)),
            ((4 * GIB + MIB, 2 * MIB, 512), (2048, 2_049, 2, 2_050, 4_098)),
            ((10 * MIB, 32 * MIB, 512), (128, 1, 1, 1, 129)),
        ] {
            let g = geometry(vs, bs, lss, false);
            assert_eq!(
                (g.chunk_ratio(), g.block_count(), g.chunk_count(), g.bat_entries()),
                (cr, npb, nsb, dynamic)
            );
            assert_eq!(geometry(vs, bs, lss, true).bat_entries(), differencing);
        }
        assert_eq!(geometry(64 * TIB, MIB, 512, true).bat_region_len(), 513 * MIB);
    }

    #[test]
    fn bitmap_slots_interleave_with_payload_slots() {
        let g = geometry(8 * GIB, 2 * MIB, 512, true);
        assert_eq!(g.bitmap_index(ChunkIndex(0)), BatIndex(2048));
        assert_eq!(g.bitmap_index(ChunkIndex(1)), BatIndex(4097));
        assert_eq!(g.payload_index(BlockIndex(2047)), BatIndex(2047));
        assert_eq!(g.payload_index(BlockIndex(2048)), BatIndex(2049));
        assert_eq!(g.payload_index(BlockIndex(2513)), BatIndex(2514));
        for i in 0..g.bat_entries() {
            let back = match g.slot(BatIndex(i)) {
                BatSlot::Payload(b) => g.payload_index(b),
                BatSlot::Bitmap(c) => g.bitmap_index(c),
            };
            assert_eq!(back, BatIndex(i));
        }
        assert_eq!(g.block_of(5 * GIB), BlockIndex(2560));
        assert_eq!(g.bit_of(5 * GIB), 2_097_152);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for (vs, bs, lss) in [
            (0, MIB as u32, 512),
            (MIB, 0, 512),
            (MIB, 3 << 20, 512),
            (MIB, 512 << 20, 512),
            (MIB, 1 << 19, 512),
            (MIB, 1 << 20, 1024),
            (513, 1 << 20, 512),
            (64 * TIB + 512, 1 << 20, 512),
        ] {
            assert!(Geometry::new(vs, bs, lss, false, 0).is_err(), "{vs} {bs} {lss}");
        }
    }
}
