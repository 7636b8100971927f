//! Random chains of every geometry and state, written by us and read by programs that are not ours; and disks written by
//! QEMU, read by us. Where a reader disagrees with what was written, the chain must have a trait for which that reader is
//! known to be wrong (docs/interop.md). `random_chains` is a fixed part of `five_hundred_chains`, which runs by name:
//!
//!     cargo test --release --test agreement -- --ignored --nocapture

mod common;
#[path = "common/random.rs"]
mod random;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use avhdx::ops;
use avhdx::options::{CreateOptions, DiskType, OpenOptions, ZeroFlags};
use avhdx::Chain;
use common::{have, hex, reader_python, MIB};
use random::Random;
use sha2::{Digest, Sha256};

/// What a chain has that some reader may not cope with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trait {
    /// More than one layer.
    Child,
    /// Sectors of 4096 bytes.
    Sector4096,
    /// An odd number of sectors.
    OddSectors,
    /// A layer larger than the one below.
    Larger,
    /// A layer smaller than the one below.
    Smaller,
    /// The log of the leaf must be replayed.
    DirtyLog,
    /// A child has blocks that are zero, unmapped or undefined.
    ChildZero,
    /// A child has fully present blocks.
    ChildFull,
    /// A child has fully present blocks in a chunk without a bitmap.
    ChildFullNoBitmap,
    /// A child has partially present blocks.
    ChildPartial,
    /// Such blocks with runs that do not begin or end on a multiple of eight sectors.
    FineBitmap,
    /// Blocks behind the first chunk.
    SecondChunk,
    /// A fixed disk.
    Fixed,
}
use Trait::*;

/// The traits for which a reader is known to be wrong: any one of a line is enough. See docs/interop.md.
const KNOWN: &[(&str, &[&[Trait]])] = &[
    ("avhdx", &[]),
    (
        "libvhdi",
        &[
            &[DirtyLog],
            &[ChildZero],
            &[ChildFull],
            &[Larger],
            &[Smaller],
            &[SecondChunk],
        ],
    ),
    ("dissect", &[&[DirtyLog], &[FineBitmap], &[Larger], &[Smaller]]),
    ("7-Zip", &[&[DirtyLog], &[OddSectors], &[Larger], &[Smaller]]),
    ("qemu-img", &[&[DirtyLog], &[Sector4096]]),
];

/// A chain on disk and what it must read as.
struct Written {
    name: String,
    /// Leaf first.
    paths: Vec<PathBuf>,
    size: u64,
    /// The MiB written anywhere, by number.
    content: BTreeMap<u64, Vec<u8>>,
    traits: BTreeSet<Trait>,
}

impl Written {
    fn mib(&mut self, number: u64) -> &mut Vec<u8> {
        self.content.entry(number).or_insert_with(|| vec![0; MIB as usize])
    }

    /// Calls `change` with each part of a range that lies in one MiB.
    fn each(&mut self, at: u64, len: u64, mut change: impl FnMut(&mut [u8], usize)) {
        let mut done = 0;
        while done < len {
            let (number, within) = ((at + done) / MIB, (at + done) % MIB);
            let part = (MIB - within).min(len - done);
            change(
                &mut self.mib(number)[within as usize..(within + part) as usize],
                done as usize,
            );
            done += part;
        }
    }

    fn resize(&mut self, size: u64) {
        self.content.retain(|&number, _| number * MIB < size);
        if size % MIB != 0 {
            if let Some(last) = self.content.get_mut(&(size / MIB)) {
                last[(size % MIB) as usize..].fill(0);
            }
        }
        self.size = size;
    }

    /// Where to look: every MiB written and its neighbours.
    fn places(&self) -> BTreeSet<u64> {
        let last = (self.size - 1) / MIB;
        let near = |&number: &u64| [number.saturating_sub(1), number, (number + 1).min(last)];
        self.content.keys().flat_map(near).chain([0, last]).collect()
    }

    fn wanted(&self, number: u64) -> Vec<u8> {
        let len = MIB.min(self.size - number * MIB) as usize;
        match self.content.get(&number) {
            Some(bytes) => bytes[..len].to_vec(),
            None => vec![0; len],
        }
    }

    fn raw(&self, path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len(self.size).unwrap();
        for &number in self.content.keys() {
            let bytes = self.wanted(number);
            if bytes.iter().any(|&b| b != 0) {
                file.write_all_at(&bytes, number * MIB).unwrap();
            }
        }
    }
}

fn write_chain(dir: &Path, seed: u64) -> Written {
    let mut random = Random(seed);
    let sector: u64 = if random.chance(5) { 4096 } else { 512 };
    // With 4096-byte sectors a chunk is 32 GiB.
    let large = sector == 512 && random.chance(12);
    let depth = [1, 1, 2, 2, 3, 3, 4, 5][random.below(8) as usize];
    let fine = random.chance(3);
    let zeros = random.chance(2);
    let other_sizes = random.chance(5);
    let dirty = random.chance(10);
    let odd = random.chance(4);
    let fixed = !large && random.chance(5);
    let grain = if odd { sector } else { 4096.max(sector) };
    let some_size = |random: &mut Random| {
        let least = if large { 4096 * MIB } else { MIB };
        (least + random.below(20 * MIB)) / grain * grain + grain
    };
    let mut written = Written {
        name: format!("chain-{seed}"),
        paths: Vec::new(),
        size: some_size(&mut random),
        content: BTreeMap::new(),
        traits: BTreeSet::new(),
    };
    let unit = if fine { sector } else { 8 * sector };
    let folder = dir.join(&written.name);
    fs::create_dir(&folder).unwrap();
    for layer in 0..depth {
        let path = folder.join(format!("{layer}.{}", if layer == 0 { "vhdx" } else { "avhdx" }));
        let mut options = CreateOptions::default();
        let shifts = if random.chance(8) { 9 } else { 4 };
        options.block_size = 1 << (20 + random.below(shifts));
        if layer == 0 {
            options.disk_type = if fixed { DiskType::Fixed } else { DiskType::Dynamic };
            options.logical_sector_size = sector as u32;
            if fixed {
                options.block_size = options.block_size.min(4 << 20);
            }
        } else {
            options.disk_type = DiskType::Differencing;
            options.parent = Some(written.paths[0].clone());
            if other_sizes && random.chance(2) {
                let size = some_size(&mut random);
                written.resize(size);
            }
        }
        options.size = written.size;
        let block = u64::from(options.block_size);
        ops::create(&path, &options).unwrap();
        written.paths.insert(0, path.clone());
        let chain = Chain::open(&path, &OpenOptions::new()).unwrap();
        for _ in 0..2 + random.below(9) {
            change(&chain, &mut written, &mut random, unit, block, zeros);
        }
        if layer + 1 == depth && dirty {
            chain.flush().unwrap();
            drop(chain);
        } else {
            chain.close().unwrap();
        }
    }
    find_traits(&mut written, sector);
    if fine && written.traits.contains(&ChildPartial) {
        written.traits.insert(FineBitmap);
    }
    if fixed {
        written.traits.insert(Fixed);
    }
    written
}

fn change(chain: &Chain, written: &mut Written, random: &mut Random, unit: u64, block: u64, zeros: bool) {
    let size = written.size;
    let near = if random.chance(3) {
        size.saturating_sub(3 * MIB)
    } else {
        0
    };
    let (at, len) = match random.below(4) {
        // A whole block, or two.
        0 if block <= 8 * MIB => (near / block * block, block * (1 + random.below(2))),
        0 => (near / block * block, block),
        1 => (random.below(20) * MIB, MIB),
        _ => (
            (near + random.below(20 * MIB)) / unit * unit,
            (1 + random.below(64)) * unit,
        ),
    };
    let at = at.min((size - 1) / unit * unit);
    let len = len.min(size - at).min(16 * MIB);
    match random.below(if zeros { 4 } else { 2 }) {
        0 | 1 => {
            let tag = random.next() | 1;
            let bytes: Vec<u8> = (0..len / 8).flat_map(|i| (tag ^ i >> 6).to_le_bytes()).collect();
            chain.write(&bytes, at, false).unwrap();
            written.each(at, len, |part, done| {
                part.copy_from_slice(&bytes[done..done + part.len()])
            });
        }
        2 => {
            let flags = ZeroFlags {
                may_unmap: random.chance(2),
                ..ZeroFlags::default()
            };
            chain.zero(at, len, flags).unwrap();
            written.each(at, len, |part, _| part.fill(0));
        }
        _ => {
            chain.discard(at, len, false).unwrap();
            // Advisory: zeros or as before.
            written.each(at, len, |part, done| {
                let mut now = vec![0; part.len()];
                chain.read(&mut now, at + done as u64).unwrap();
                for (old, new) in part.iter_mut().zip(now) {
                    assert!(new == *old || new == 0, "a discard exposed something else");
                    *old = new;
                }
            });
        }
    }
}

/// Looks at the block tables of the files, without our own reader.
fn find_traits(written: &mut Written, sector: u64) {
    let traits = &mut written.traits;
    if sector == 4096 {
        traits.insert(Sector4096);
    }
    let mut below = None;
    for (i, path) in written.paths.iter().enumerate().rev() {
        let options = OpenOptions::read_only();
        let info = Chain::open(path, &options).unwrap().layer_info(0).unwrap();
        if info.dirty_flag {
            traits.insert(DirtyLog);
        }
        if info.virtual_size / sector % 2 == 1 {
            traits.insert(OddSectors);
        }
        match below.map(|below| info.virtual_size.cmp(&below)) {
            Some(Ordering::Greater) => drop(traits.insert(Larger)),
            Some(Ordering::Less) => drop(traits.insert(Smaller)),
            _ => {}
        }
        below = Some(info.virtual_size);
        let is_child = i + 1 < written.paths.len();
        if is_child {
            traits.insert(Child);
        }
        let block = u64::from(info.block_size);
        let ratio = (sector << 23) / block;
        let blocks = info.virtual_size.div_ceil(block);
        let table = block_table(path);
        if blocks > ratio {
            traits.insert(SecondChunk);
        }
        if !is_child {
            continue;
        }
        for chunk in 0..blocks.div_ceil(ratio) {
            let first = (chunk * (ratio + 1)) as usize;
            let states: BTreeSet<u64> = table[first..first + ratio.min(blocks - chunk * ratio) as usize]
                .iter()
                .map(|entry| entry & 7)
                .collect();
            let bitmap = table[first + ratio as usize] & 7 == 6;
            if states.iter().any(|state| (1..=3).contains(state)) {
                traits.insert(ChildZero);
            }
            if states.contains(&6) {
                traits.insert(ChildFull);
                if !bitmap {
                    traits.insert(ChildFullNoBitmap);
                }
            }
            if states.contains(&7) {
                traits.insert(ChildPartial);
                // The end of the disk ends a run, too.
                if info.virtual_size / sector % 8 != 0 {
                    traits.insert(FineBitmap);
                }
            }
        }
    }
}

/// The words of the BAT, found through the first region table.
fn block_table(path: &Path) -> Vec<u64> {
    const BAT: [u8; 16] = [
        0x66, 0x77, 0xC2, 0x2D, 0x23, 0xF6, 0x00, 0x42, 0x9D, 0x64, 0x11, 0x5E, 0x9B, 0xFD, 0x4A, 0x08,
    ];
    let file = File::open(path).unwrap();
    let mut regions = [0; 4096];
    file.read_exact_at(&mut regions, 192 << 10).unwrap();
    let entry = regions[16..]
        .chunks_exact(32)
        .find(|entry| entry[..16] == BAT)
        .expect("a BAT");
    let at = u64::from_le_bytes(entry[16..24].try_into().unwrap());
    let len = u32::from_le_bytes(entry[24..28].try_into().unwrap());
    let mut words = vec![0; len as usize];
    file.read_exact_at(&mut words, at).unwrap();
    words
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect()
}

// ---- the readers ----

/// `Ok`, or how it differs.
type Verdict = Result<(), String>;

fn ours(chain: &Written) -> Verdict {
    let disk = Chain::open(&chain.paths[0], &OpenOptions::read_only()).map_err(|e| e.chain_text())?;
    if disk.size() != chain.size {
        return Err(format!("size {}", disk.size()));
    }
    for number in chain.places() {
        let wanted = chain.wanted(number);
        let mut found = vec![0xEE; wanted.len()];
        disk.read(&mut found, number * MIB).map_err(|e| e.chain_text())?;
        if found != wanted {
            return Err(format!("MiB {number} differs"));
        }
    }
    Ok(())
}

/// Reads lines "reader leaf,parent,... size number:hash,..." and answers each with a line.
const PYTHON: &str = r#"
import sys, hashlib
from pathlib import Path
import pyvhdi
from dissect.hypervisor.disk.vhdx import VHDX

class Libvhdi:
    def __init__(self, paths):
        self.files = []
        for path in paths:
            f = pyvhdi.file(); f.open(path); self.files.append(f)
        for child, parent in zip(self.files, self.files[1:]):
            child.set_parent(parent)
        self.size = self.files[0].get_media_size()
    def read(self, at, n):
        self.files[0].seek(at)
        got = b''
        while len(got) < n:
            piece = self.files[0].read(n - len(got))
            if not piece:
                break
            got += piece
        return got

class Dissect:
    def __init__(self, paths):
        self.disk = VHDX(Path(paths[0]))
        self.size = self.disk.size
    def read(self, at, n):
        self.disk.seek(at)
        return self.disk.read(n)

def judge(reader, paths, size, pieces):
    disk = {'libvhdi': Libvhdi, 'dissect': Dissect}[reader](paths.split(','))
    if disk.size != int(size):
        return 'size %d' % disk.size
    for piece in pieces.split(','):
        number, length, digest = piece.split(':')
        if hashlib.sha256(disk.read(int(number) << 20, int(length))).hexdigest() != digest:
            return 'MiB %s differs' % number
    return 'ok'

for line in sys.stdin:
    try:
        print(judge(*line.split()))
    except Exception as e:
        print(type(e).__name__, str(e).replace('\n', ' ')[:150])
"#;

/// Asks a reader in Python about all chains at once.
fn python(python: &str, reader: &str, chains: &[Written]) -> Vec<Verdict> {
    let mut lines = String::new();
    for chain in chains {
        let paths: Vec<&str> = chain.paths.iter().map(|p| p.to_str().unwrap()).collect();
        let pieces: Vec<String> = chain
            .places()
            .into_iter()
            .map(|number| {
                let bytes = chain.wanted(number);
                format!("{number}:{}:{}", bytes.len(), hex(&Sha256::digest(&bytes)))
            })
            .collect();
        writeln!(
            lines,
            "{reader} {} {} {}",
            paths.join(","),
            chain.size,
            pieces.join(",")
        )
        .unwrap();
    }
    let input = chains[0].paths[0].parent().unwrap().join("input");
    fs::write(&input, lines).unwrap();
    let output = Command::new(python)
        .args(["-c", PYTHON])
        .stdin(File::open(&input).unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut verdicts: Vec<Verdict> = text
        .lines()
        .map(|line| match line {
            "ok" => Ok(()),
            other => Err(other.to_string()),
        })
        .collect();
    // One that takes the interpreter down with it answers for itself only.
    if verdicts.len() < chains.len() {
        verdicts.push(Err(format!("{}", output.status)));
        let rest = &chains[verdicts.len()..];
        if !rest.is_empty() {
            verdicts.extend(self::python(python, reader, rest));
        }
    }
    verdicts
}

fn seven_zip(chain: &Written, dir: &Path) -> Verdict {
    let out = dir.join("7z-out");
    let result = Command::new("7zz")
        .args(["x", "-tVHDX", "-y"])
        .arg(format!("-o{}", out.display()))
        .arg(&chain.paths[0])
        .output()
        .unwrap();
    let unpacked = fs::read_dir(&out)
        .ok()
        .and_then(|mut d| d.next())
        .map(|e| e.unwrap().path());
    let verdict = match unpacked {
        _ if !result.status.success() => {
            let text = [result.stdout, result.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            let line = text
                .lines()
                .find(|line| line.contains("rror") || line.contains("Cannot"));
            Err(format!("refuses: {}", line.unwrap_or_default()))
        }
        None => Err("nothing unpacked".to_string()),
        Some(path) => {
            let file = File::open(&path).unwrap();
            match file.metadata().unwrap().len() {
                size if size != chain.size => Err(format!("size {size}")),
                _ => chain
                    .places()
                    .into_iter()
                    .find(|&number| {
                        let wanted = chain.wanted(number);
                        let mut found = vec![0; wanted.len()];
                        file.read_exact_at(&mut found, number * MIB).unwrap();
                        found != wanted
                    })
                    .map_or(Ok(()), |number| Err(format!("MiB {number} differs"))),
            }
        }
    };
    let _ = fs::remove_dir_all(&out);
    verdict
}

fn qemu_img(chain: &Written, dir: &Path) -> Verdict {
    let raw = dir.join("qemu.raw");
    chain.raw(&raw);
    let result = Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "vhdx"])
        .args([&raw, &chain.paths[0]])
        .output()
        .unwrap();
    fs::remove_file(&raw).unwrap();
    match result.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&[result.stdout, result.stderr].concat())
            .trim()
            .to_string()),
    }
}

/// Right and wrong per reader, and wrong per set of known traits.
#[derive(Default)]
struct Tally {
    right: u32,
    wrong: u32,
    why: BTreeMap<String, u32>,
    unexplained: Vec<String>,
}

impl Tally {
    fn add(&mut self, reader: &str, chain: &Written, verdict: Verdict) {
        let Err(how) = verdict else {
            self.right += 1;
            return;
        };
        self.wrong += 1;
        let (_, known) = KNOWN.iter().find(|(name, _)| *name == reader).unwrap();
        let why: Vec<String> = known
            .iter()
            .filter(|needed| needed.iter().all(|t| chain.traits.contains(t)))
            .map(|needed| format!("{needed:?}"))
            .collect();
        if why.is_empty() {
            let line = format!("{reader}: {}: {how}; {:?}", chain.name, chain.traits);
            self.unexplained.push(line);
        }
        let how: String = how.chars().filter(|c| !c.is_ascii_digit()).take(60).collect();
        *self.why.entry(format!("{} | {how}", why.join(" "))).or_default() += 1;
    }
}

fn compare(seeds: std::ops::Range<u64>) {
    let reader_python = reader_python();
    let (seven, qemu) = (have("7zz"), have("qemu-img"));
    let mut tallies: BTreeMap<&str, Tally> = BTreeMap::new();
    let mut seen: BTreeMap<Trait, u32> = BTreeMap::new();
    let mut count = 0;
    // AVHDX_AGREEMENT=1,7: these only.
    let seeds: Vec<u64> = match std::env::var("AVHDX_AGREEMENT") {
        Ok(list) => list.split(',').map(|seed| seed.parse().unwrap()).collect(),
        Err(_) => seeds.collect(),
    };
    for some in seeds.chunks(20) {
        let dir = tempfile::tempdir().unwrap();
        let chains: Vec<Written> = some.iter().map(|&seed| write_chain(dir.path(), seed)).collect();
        for chain in &chains {
            count += 1;
            for &found in &chain.traits {
                *seen.entry(found).or_default() += 1;
            }
            tallies.entry("avhdx").or_default().add("avhdx", chain, ours(chain));
            if seven && chain.size < 64 * MIB {
                let verdict = seven_zip(chain, dir.path());
                tallies.entry("7-Zip").or_default().add("7-Zip", chain, verdict);
            }
            if qemu && !chain.traits.contains(&Child) {
                let verdict = qemu_img(chain, dir.path());
                tallies.entry("qemu-img").or_default().add("qemu-img", chain, verdict);
            }
        }
        if let Some(program) = &reader_python {
            for reader in ["libvhdi", "dissect"] {
                for (chain, verdict) in chains.iter().zip(python(program, reader, &chains)) {
                    tallies.entry(reader).or_default().add(reader, chain, verdict);
                }
            }
        }
    }
    println!("{count} chains; traits: {seen:?}");
    let mut unexplained = Vec::new();
    for (reader, tally) in tallies {
        println!("{reader}: {} right, {} wrong", tally.right, tally.wrong);
        for (why, n) in tally.why {
            println!("    {n:4} {why}");
        }
        unexplained.extend(tally.unexplained);
    }
    assert!(unexplained.is_empty(), "not explained:\n{}", unexplained.join("\n"));
}

#[test]
fn random_chains() {
    compare(1..41);
}

#[test]
#[ignore = "minutes; see the top of the file"]
fn five_hundred_chains() {
    compare(1..521);
}

/// Disks made and changed by QEMU.
fn from_qemu(seeds: std::ops::Range<u64>) {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for seed in seeds {
        let mut random = Random(seed);
        let (raw, disk) = (dir.path().join("disk.raw"), dir.path().join("disk.vhdx"));
        let size = (MIB + random.below(40 * MIB)) / 512 * 512 + 512;
        let mut content = vec![0u8; size as usize];
        for _ in 0..random.below(12) {
            let at = random.below(size) as usize / 512 * 512;
            let end = (at + (1 + random.below(4 * MIB)) as usize).min(content.len());
            content[at..end].fill(random.next() as u8);
        }
        fs::write(&raw, &content).unwrap();
        let subformat = ["dynamic", "fixed"][random.below(2) as usize];
        let zero = ["on", "off"][random.below(2) as usize];
        let options = format!(
            "subformat={subformat},block_size={}M,log_size={}M,block_state_zero={zero}",
            1 << random.below(6),
            1 + random.below(3)
        );
        let run = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).output().unwrap();
            assert!(output.status.success(), "{program} {args:?}: {output:?}");
        };
        let (from, to) = (raw.to_str().unwrap(), disk.to_str().unwrap());
        run(
            "qemu-img",
            &["convert", "-f", "raw", "-O", "vhdx", "-o", &options, from, to],
        );
        // QEMU rounds the size up to whole MiB.
        content.resize((size.div_ceil(MIB) * MIB) as usize, 0);
        for _ in 0..random.below(4) {
            let at = random.below(size - 512) as usize / 512 * 512;
            let end = (at + (1 + random.below(2 * MIB) as usize) / 512 * 512 + 512).min(size as usize / 512 * 512);
            let byte = random.next() as u8;
            content[at..end].fill(byte);
            let command = format!("write -P {byte} {at} {}", end - at);
            run("qemu-io", &["-f", "vhdx", "-c", &command, to]);
        }
        let chain = Chain::open(&disk, &OpenOptions::read_only()).unwrap();
        let mut found = vec![0xEE; chain.size() as usize];
        chain.read(&mut found, 0).unwrap();
        content.resize(found.len(), 0);
        assert!(chain.size() >= size && found == content, "seed {seed}: {options}");
        drop(chain);
        let report = ops::check(
            &disk,
            &OpenOptions::read_only(),
            &ops::CheckOptions::default(),
            &mut |_| (),
        )
        .unwrap();
        assert_eq!(report.errors, 0, "seed {seed}: {options}");
        fs::remove_file(&disk).unwrap();
    }
}

#[test]
fn disks_from_qemu() {
    from_qemu(1..7);
}

#[test]
#[ignore = "minutes; see the top of the file"]
fn hundred_disks_from_qemu() {
    from_qemu(1..101);
}
