//! From the journal to the states.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;
use std::path::PathBuf;

use super::{Change, CrashFileSystem, Event, Naming};
use crate::storage::memory::Content;
use crate::storage::{Barrier, MemoryFileSystem};

/// Which states to make.
#[derive(Debug, Clone)]
pub struct CrashOptions {
    /// Flushes with this barrier do not count: what happens if the code forgot them.
    pub ignore: Option<Barrier>,
    /// Seed of the random choices.
    pub seed: u64,
    /// Random subsets at each point where there are too many to try all.
    pub subsets_per_point: usize,
    /// All subsets when no more changes than this are undecided.
    pub exhaustive_up_to: usize,
    /// Writes may be torn at 4 KiB pages, and now and then at 512-byte sectors.
    pub tear: bool,
    /// Writes below this file offset may, besides, leave their sectors as garbage: what a medium may make of a sector
    /// that is being written when the power fails. For structures that are kept twice for that reason.
    pub garble_below: u64,
    /// First event at which power may fail.
    pub start: usize,
}

impl Default for CrashOptions {
    fn default() -> Self {
        CrashOptions {
            ignore: None,
            seed: 1,
            subsets_per_point: 16,
            exhaustive_up_to: 4,
            tear: true,
            garble_below: 0,
            start: 0,
        }
    }
}

/// Where power failed, and what was chosen to survive.
#[derive(Debug, Clone)]
pub struct CrashPoint {
    /// Events before the failure.
    pub index: usize,
    /// Marks before the failure.
    pub marks: Vec<u64>,
    /// The choice, for people.
    pub description: String,
}

/// What was made.
#[derive(Debug, Clone, Copy, Default)]
pub struct CrashStats {
    /// Number of states.
    pub states: u64,
}

/// What becomes of an undecided change.
#[derive(Debug, Clone, Copy, Hash, PartialEq, Eq)]
enum Fate {
    Lost,
    Kept,
    /// Pieces of this size, kept where the random bit is set.
    Torn {
        piece: u64,
        seed: u64,
    },
    Garbled,
}

/// SplitMix64.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

struct Enumerator<'a> {
    options: &'a CrashOptions,
    events: &'a [Event],
    durable: BTreeMap<u64, Content>,
    names: BTreeMap<PathBuf, u64>,
    /// Undecided changes of files, by event.
    data: Vec<usize>,
    /// Undecided changes of directories, by event.
    naming: BTreeMap<PathBuf, Vec<usize>>,
    marks: Vec<u64>,
    random: Random,
    seen: HashSet<u64>,
    visit: &'a mut dyn FnMut(MemoryFileSystem, &CrashPoint) -> ControlFlow<()>,
    stats: CrashStats,
}

impl CrashFileSystem {
    /// Calls `visit` with each state. Deterministic for the same journal and options.
    pub fn enumerate(
        &self,
        options: &CrashOptions,
        visit: &mut dyn FnMut(MemoryFileSystem, &CrashPoint) -> ControlFlow<()>,
    ) -> CrashStats {
        let (events, durable, names) = {
            let journal = self.journal.lock();
            (journal.events.clone(), journal.contents.clone(), journal.names.clone())
        };
        let mut enumerator = Enumerator {
            options,
            events: &events,
            durable,
            names,
            data: Vec::new(),
            naming: BTreeMap::new(),
            marks: Vec::new(),
            random: Random(options.seed),
            seen: HashSet::new(),
            visit,
            stats: CrashStats::default(),
        };
        let _ = enumerator.run();
        enumerator.stats
    }
}

impl Enumerator<'_> {
    fn run(&mut self) -> ControlFlow<()> {
        let events = self.events;
        for (index, event) in events.iter().enumerate() {
            self.advance(index, event);
            if index + 1 < self.options.start {
                continue;
            }
            // Before something becomes durable, at the end, and where the caller was promised something.
            let decisive = matches!(
                events.get(index + 1),
                None | Some(Event::Flush { .. } | Event::SyncDir { .. })
            ) || matches!(event, Event::Mark(_));
            if decisive {
                self.all_kinds(index + 1)?;
            } else {
                let all = vec![Fate::Kept; self.data.len()];
                self.state(index + 1, &all, usize::MAX, "everything")?;
            }
        }
        ControlFlow::Continue(())
    }

    fn advance(&mut self, index: usize, event: &Event) {
        match event {
            Event::Mark(value) => self.marks.push(*value),
            Event::Data { .. } => self.data.push(index),
            Event::Name { dir, .. } => self.naming.entry(dir.clone()).or_default().push(index),
            Event::Flush { barrier, .. } if self.options.ignore == Some(*barrier) => {}
            Event::Flush { file, .. } => {
                let events = self.events;
                let of_file = |i: &usize| matches!(&events[*i], Event::Data { file: f, .. } if f == file);
                let content = self.durable.entry(*file).or_default();
                for i in self.data.iter().filter(|i| of_file(i)) {
                    if let Event::Data { change, .. } = &events[*i] {
                        apply(content, change, Fate::Kept);
                    }
                }
                self.data.retain(|i| !of_file(i));
            }
            Event::SyncDir { dir } => {
                for i in self.naming.remove(dir).unwrap_or_default() {
                    if let Event::Name { naming, .. } = &self.events[i] {
                        rename(&mut self.names, naming);
                    }
                }
            }
        }
    }

    fn all_kinds(&mut self, index: usize) -> ControlFlow<()> {
        let n = self.data.len();
        let names: usize = self.naming.values().map(Vec::len).max().unwrap_or(0);
        let lost = vec![Fate::Lost; n];
        let kept = vec![Fate::Kept; n];
        for depth in 0..=names {
            self.state(index, &lost, depth, "nothing")?;
            self.state(index, &kept, depth, "everything")?;
        }
        if n <= self.options.exhaustive_up_to {
            for subset in 0..1u64 << n {
                let fates: Vec<Fate> = (0..n).map(|i| fate(subset >> i & 1 != 0)).collect();
                self.state(index, &fates, usize::MAX, "a subset")?;
            }
        } else {
            // Each one alone and each one missing, the latest first: they are what the flush is about.
            for i in (0..n).rev().take(2 * self.options.subsets_per_point) {
                let mut fates = kept.clone();
                fates[i] = Fate::Lost;
                self.state(index, &fates, usize::MAX, "all but one")?;
                let mut fates = lost.clone();
                fates[i] = Fate::Kept;
                self.state(index, &fates, usize::MAX, "one alone")?;
            }
            for _ in 0..self.options.subsets_per_point {
                let fates: Vec<Fate> = (0..n).map(|_| fate(self.random.next() & 1 != 0)).collect();
                self.state(index, &fates, usize::MAX, "a random subset")?;
            }
        }
        let garbled: Vec<bool> = self.data.iter().map(|&i| self.can_garble(i)).collect();
        if garbled.contains(&true) {
            for others in [Fate::Lost, Fate::Kept] {
                let fates: Vec<Fate> = garbled
                    .iter()
                    .map(|&g| if g { Fate::Garbled } else { others })
                    .collect();
                self.state(index, &fates, usize::MAX, "garbled sectors")?;
            }
        }
        if self.options.tear && n > 0 {
            for round in 0..self.options.subsets_per_point {
                let fates: Vec<Fate> = (0..n)
                    .map(|_| {
                        let bits = self.random.next();
                        match bits % 4 {
                            0 => Fate::Lost,
                            1 => Fate::Kept,
                            _ => Fate::Torn {
                                piece: if round % 4 == 3 { 512 } else { 4096 },
                                seed: bits >> 8,
                            },
                        }
                    })
                    .collect();
                let depth = (self.random.next() % (names as u64 + 1)) as usize;
                self.state(index, &fates, depth, "torn writes")?;
            }
        }
        ControlFlow::Continue(())
    }

    fn can_garble(&self, event: usize) -> bool {
        let below = self.options.garble_below;
        matches!(&self.events[event], Event::Data { change: Change::Write { at, len, .. }, .. }
            if at + len <= below)
    }

    /// Makes one state, unless it was made before.
    fn state(&mut self, index: usize, fates: &[Fate], depth: usize, what: &str) -> ControlFlow<()> {
        let mut hasher = DefaultHasher::new();
        (index, fates, depth.min(self.events.len())).hash(&mut hasher);
        if !self.seen.insert(hasher.finish()) {
            return ControlFlow::Continue(());
        }
        let mut contents = self.durable.clone();
        for (&i, &fate) in self.data.iter().zip(fates) {
            if let Event::Data { file, change } = &self.events[i] {
                apply(contents.entry(*file).or_default(), change, fate);
            }
        }
        let mut names = self.names.clone();
        for list in self.naming.values() {
            for &i in list.iter().take(depth) {
                if let Event::Name { naming, .. } = &self.events[i] {
                    rename(&mut names, naming);
                }
            }
        }
        let state = MemoryFileSystem::new();
        for (path, file) in names {
            // A file has one name.
            state.insert_content(&path, contents.remove(&file).unwrap_or_default());
        }
        self.stats.states += 1;
        let point = CrashPoint {
            index,
            marks: self.marks.clone(),
            description: format!("{what} of {} changes after event {index}: {fates:?}", fates.len()),
        };
        (self.visit)(state, &point)
    }
}

fn fate(kept: bool) -> Fate {
    if kept {
        Fate::Kept
    } else {
        Fate::Lost
    }
}

fn apply(content: &mut Content, change: &Change, fate: Fate) {
    match (change, fate) {
        (_, Fate::Lost) => {}
        (Change::SetLen(len), _) => content.set_len(*len),
        (Change::Write { at, len, pages }, Fate::Kept) => content.copy(pages, *at, at + len),
        (Change::Write { at, len, .. }, Fate::Garbled) => content.write(&vec![0xA5; *len as usize], *at),
        (Change::Zero { at, len }, Fate::Kept | Fate::Garbled) => content.zero(*at, *len),
        (Change::Write { at, len, pages }, Fate::Torn { piece, seed }) => {
            for (from, to) in pieces(*at, *len, piece, seed) {
                content.copy(pages, from, to);
            }
        }
        (Change::Zero { at, len }, Fate::Torn { piece, seed }) => {
            // Large ranges are zeroed in a few strokes.
            for (from, to) in pieces(*at, *len, piece.max(len / 8 / 4096 * 4096), seed) {
                content.zero(from, to - from);
            }
        }
    }
}

/// The parts of a range between multiples of `piece` that survive.
fn pieces(at: u64, len: u64, piece: u64, seed: u64) -> Vec<(u64, u64)> {
    let mut random = Random(seed);
    let (mut from, end) = (at, at + len);
    let mut kept = Vec::new();
    while from < end {
        let to = ((from / piece + 1) * piece).min(end);
        if random.next() & 1 != 0 {
            kept.push((from, to));
        }
        from = to;
    }
    kept
}

fn rename(names: &mut BTreeMap<PathBuf, u64>, naming: &Naming) {
    match naming {
        Naming::Create { path, file } => {
            names.insert(path.clone(), *file);
        }
        Naming::Rename { from, to } => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        Naming::Remove { path } => {
            names.remove(path);
        }
    }
}
