//! A writer of VHD files for tests: any type, block size, bitmaps and parent names.
#![allow(dead_code)] // each file uses some of it

use avhdx::options::DiskType;
use avhdx::vhd::codec::{bitmap_len, DynamicHeader, Footer, LocatorEntry, UNALLOCATED};
use avhdx::Guid;

pub const SECTOR: usize = 512;

/// One VHD to be.
#[derive(Clone)]
pub struct Vhd {
    pub id: [u8; 16],
    pub size: usize,
    pub block_size: usize,
    /// Sectors that the file holds: all of them in a fixed disk.
    pub sectors: Vec<Option<[u8; SECTOR]>>,
    /// The parent's identity and its relative path, absolute path and name, where it has one.
    pub parent: Option<([u8; 16], String, String, String)>,
}

impl Vhd {
    pub fn new(id: u8, size: usize, block_size: usize) -> Vhd {
        Vhd {
            id: [id; 16],
            size,
            block_size,
            sectors: vec![None; size / SECTOR],
            parent: None,
        }
    }

    pub fn on(mut self, parent: &Vhd, name: &str) -> Vhd {
        self.parent = Some((
            parent.id,
            format!(".\\{name}"),
            format!("C:\\gone\\{name}"),
            format!("C:\\gone\\{name}"),
        ));
        self
    }

    pub fn footer(&self, disk_type: DiskType) -> Footer {
        Footer {
            data_offset: if disk_type == DiskType::Fixed { u64::MAX } else { 512 },
            timestamp: 1,
            creator: *b"win ",
            creator_version: 0x000A_0000,
            current_size: self.size as u64,
            disk_type,
            unique_id: Guid::from_stored(self.id),
            saved_state: false,
        }
    }

    pub fn fixed(&self) -> Vec<u8> {
        let mut bytes = self.own();
        bytes.extend(self.footer(DiskType::Fixed).encode());
        bytes
    }

    /// What the file alone reads as.
    pub fn own(&self) -> Vec<u8> {
        self.sectors.iter().flat_map(|s| s.unwrap_or([0; SECTOR])).collect()
    }

    /// What it reads as on a parent.
    pub fn over(&self, parent: &[u8]) -> Vec<u8> {
        let below = |i: usize| {
            let mut sector = [0; SECTOR];
            if let Some(bytes) = parent.get(i * SECTOR..(i + 1) * SECTOR) {
                sector.copy_from_slice(bytes);
            }
            sector
        };
        let sectors = self.sectors.iter().enumerate();
        sectors.flat_map(|(i, s)| s.unwrap_or_else(|| below(i))).collect()
    }

    /// Dynamic, or differencing with a parent.
    pub fn encode(&self) -> Vec<u8> {
        let utf16 = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
        let table = 0x2000;
        let entries = self.size.div_ceil(self.block_size);
        let mut bytes = vec![0; 1536];
        let mut header = DynamicHeader {
            table_offset: table as u64,
            max_entries: entries as u32,
            block_size: self.block_size as u32,
            parent_id: Guid::ZERO,
            parent_timestamp: 0,
            parent_name: String::new(),
            locators: Vec::new(),
        };
        if let Some((id, relative, absolute, name)) = &self.parent {
            header.parent_id = Guid::from_stored(*id);
            header.parent_name = name.clone();
            for (code, text, at) in [(*b"W2ku", absolute, 0x800), (*b"W2ru", relative, 0x1000)] {
                let text = utf16(text);
                header.locators.push(LocatorEntry {
                    code,
                    length: text.len() as u32,
                    offset: at as u64,
                });
                bytes.resize(at, 0);
                bytes.extend(text);
            }
        }
        let kind = if self.parent.is_some() {
            DiskType::Differencing
        } else {
            DiskType::Dynamic
        };
        let footer = self.footer(kind).encode();
        bytes[..512].copy_from_slice(&footer);
        bytes[512..1536].copy_from_slice(&header.encode());
        bytes.resize(table, 0);
        bytes.resize(table + (entries * 4).next_multiple_of(SECTOR), 0xFF);
        let bitmap_bytes = bitmap_len(self.block_size as u32) as usize;
        let per_block = self.block_size / SECTOR;
        for block in (0..entries).rev() {
            let last = self.sectors.len().min((block + 1) * per_block);
            let sectors = &self.sectors[block * per_block..last];
            if sectors.iter().all(Option::is_none) {
                assert_eq!(&bytes[table + block * 4..][..4], UNALLOCATED.to_be_bytes());
                continue;
            }
            let entry = (bytes.len() / SECTOR) as u32;
            bytes[table + block * 4..][..4].copy_from_slice(&entry.to_be_bytes());
            let mut bitmap = vec![0u8; bitmap_bytes];
            let mut data = vec![0; self.block_size];
            for (i, sector) in sectors.iter().enumerate() {
                if let Some(sector) = sector {
                    bitmap[i / 8] |= 0x80 >> (i % 8);
                    data[i * SECTOR..][..SECTOR].copy_from_slice(sector);
                } else if self.parent.is_some() {
                    // Nobody may read this.
                    data[i * SECTOR..][..SECTOR].fill(0xEE);
                }
            }
            bytes.extend(bitmap);
            bytes.extend(data);
        }
        bytes.extend(footer);
        bytes
    }
}
