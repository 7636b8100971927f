//! What others may write and this library does not: it reads the same, and operations leave what the format wants.

#[path = "common/shape.rs"]
mod shape;

use avhdx::ops;
use avhdx::options::{CompactMode, CompactOptions, DiskType, RebaseOptions};
use avhdx::storage::{Access, FileSystem, MemoryFileSystem};
use avhdx::Chain;
use shape::{check, create, options, path, MIB};

/// Where a new file of this size has its BAT.
const BAT: u64 = 3 * MIB;
const PARTIALLY_PRESENT: u64 = 7;

fn word(fs: &MemoryFileSystem, at: u64) -> u64 {
    let mut bytes = [0; 8];
    let file = fs.open(&path("a.avhdx"), Access::Read).unwrap();
    file.read_at(&mut bytes, at).unwrap();
    u64::from_le_bytes(bytes)
}

/// base <- a, of which block 0 is partly present with every bit set, and what the disk reads as. Blocks of 1 MiB: a chunk
/// has 4096, so the entry of its bitmap follows that of the last block.
fn whole_but_partly_present() -> (MemoryFileSystem, Vec<u8>) {
    let fs = MemoryFileSystem::new();
    let open = options(&fs);
    create(&open, "base.vhdx", DiskType::Dynamic, 4 * MIB, 1, None);
    let chain = Chain::open(&path("base.vhdx"), &open).unwrap();
    chain.write(&[1; 3 * MIB as usize], 0, false).unwrap();
    chain.close().unwrap();
    create(&open, "a.avhdx", DiskType::Differencing, 0, 1, Some("base.vhdx"));
    let chain = Chain::open(&path("a.avhdx"), &open).unwrap();
    chain.write(&[2; 4096], MIB + 8192, false).unwrap();
    chain.write(&[3; MIB as usize], 0, false).unwrap();
    let mut content = vec![0; 4 * MIB as usize];
    chain.read(&mut content, 0).unwrap();
    chain.close().unwrap();

    let (block, bitmap) = (word(&fs, BAT), word(&fs, BAT + 4096 * 8));
    assert_eq!(
        (block & 7, bitmap & 7),
        (6, 6),
        "fully present, with a bitmap in the chunk"
    );
    let file = fs.open(&path("a.avhdx"), Access::Write).unwrap();
    file.write_at(&(block & !7 | PARTIALLY_PRESENT).to_le_bytes(), BAT)
        .unwrap();
    file.write_at(&[0xFF; MIB as usize / 512 / 8], bitmap & !(MIB - 1))
        .unwrap();
    (fs, content)
}

fn reads(fs: &MemoryFileSystem, content: &[u8]) {
    check(&path("a.avhdx"), &options(fs)).unwrap();
    let chain = Chain::open(&path("a.avhdx"), &options(fs)).unwrap();
    let mut found = vec![0xEE; content.len()];
    chain.read(&mut found, 0).unwrap();
    assert!(found == content);
}

#[test]
fn a_block_of_which_every_bit_is_set_reads_and_takes_writes() {
    let (fs, mut content) = whole_but_partly_present();
    reads(&fs, &content);
    let chain = Chain::open(&path("a.avhdx"), &options(&fs)).unwrap();
    chain.write(&[9; 700], 5000, false).unwrap();
    content[5000..5700].fill(9);
    chain.close().unwrap();
    reads(&fs, &content);
}

#[test]
fn compacting_makes_it_fully_present() {
    let (fs, content) = whole_but_partly_present();
    let chain = Chain::open(&path("a.avhdx"), &options(&fs)).unwrap();
    let mut compact = CompactOptions::default();
    compact.mode = CompactMode::Full;
    ops::compact(&chain, &compact, &mut |_| true).unwrap();
    chain.close().unwrap();
    assert_eq!(word(&fs, BAT) & 7, 6);
    reads(&fs, &content);
}

#[test]
fn a_detached_disk_has_no_partly_present_block() {
    let (fs, content) = whole_but_partly_present();
    let chain = Chain::open(&path("a.avhdx"), &options(&fs)).unwrap();
    ops::detach(&chain, &RebaseOptions::default(), &mut |_| true).unwrap();
    assert_eq!(chain.layer_count(), 1);
    chain.close().unwrap();
    for block in 0..4 {
        assert_ne!(word(&fs, BAT + block * 8) & 7, PARTIALLY_PRESENT, "block {block}");
    }
    fs.remove(&path("base.vhdx")).unwrap();
    reads(&fs, &content);
}
