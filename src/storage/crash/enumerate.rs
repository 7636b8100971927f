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
    /// Synchronised directories do not count: what happens if the code forgot that.
    pub ignore_sync_dir: bool,
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
            ignore_sync_dir: false,
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
    /// Number of states, each counted once: the same changes survived and the same was promised.
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
    naming: Vec<usize>,
    /// Sum of [`weight`] over what is durable: equal sums, equal sets.
    settled: u64,
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
            naming: Vec::new(),
            settled: 0,
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
                let names = vec![true; self.naming.len()];
                self.state(index + 1, &all, &names, "everything")?;
            }
        }
        ControlFlow::Continue(())
    }

    fn advance(&mut self, index: usize, event: &Event) {
        match event {
            Event::Mark(value) => self.marks.push(*value),
            Event::Data { .. } => self.data.push(index),
            Event::Name { .. } => self.naming.push(index),
            Event::Flush { barrier, .. } if self.options.ignore == Some(*barrier) => {}
            Event::Flush { file, .. } => {
                let events = self.events;
                let of_file = |i: &usize| matches!(&events[*i], Event::Data { file: f, .. } if f == file);
                let content = self.durable.entry(*file).or_default();
                for i in self.data.iter().filter(|i| of_file(i)) {
                    if let Event::Data { change, .. } = &events[*i] {
                        apply(content, change, Fate::Kept);
                        self.settled = self.settled.wrapping_add(weight(*i, Fate::Kept));
                    }
                }
                self.data.retain(|i| !of_file(i));
            }
            Event::SyncDir { .. } if self.options.ignore_sync_dir => {}
            Event::SyncDir { dir } => {
                let events = self.events;
                let of_dir = |i: &usize| matches!(&events[*i], Event::Name { dir: d, .. } if d == dir);
                for i in self.naming.iter().filter(|i| of_dir(i)) {
                    if let Event::Name { naming, .. } = &events[*i] {
                        rename(&mut self.names, naming);
                        self.settled = self.settled.wrapping_add(weight(*i, Fate::Kept));
                    }
                }
                self.naming.retain(|i| !of_dir(i));
            }
        }
    }

    /// Which changes of names to try: all subsets of a few, else what is lost at the end, one by one, and some more.
    fn namings(&mut self) -> Vec<Vec<bool>> {
        let n = self.naming.len();
        if n <= self.options.exhaustive_up_to.min(6) {
            return (0..1u64 << n)
                .map(|subset| (0..n).map(|i| subset >> i & 1 != 0).collect())
                .collect();
        }
        let mut all = Vec::new();
        for depth in 0..=n {
            all.push((0..n).map(|i| i < depth).collect());
        }
        for one in 0..n {
            all.push((0..n).map(|i| i != one).collect());
            all.push((0..n).map(|i| i == one).collect());
        }
        for _ in 0..self.options.subsets_per_point {
            all.push((0..n).map(|_| self.random.next() & 1 != 0).collect());
        }
        all
    }

    fn all_kinds(&mut self, index: usize) -> ControlFlow<()> {
        let n = self.data.len();
        let named = vec![true; self.naming.len()];
        let lost = vec![Fate::Lost; n];
        let kept = vec![Fate::Kept; n];
        let namings = self.namings();
        for names in &namings {
            self.state(index, &lost, names, "nothing")?;
            self.state(index, &kept, names, "everything")?;
        }
        if n <= self.options.exhaustive_up_to {
            for subset in 0..1u64 << n {
                let fates: Vec<Fate> = (0..n).map(|i| fate(subset >> i & 1 != 0)).collect();
                self.state(index, &fates, &named, "a subset")?;
            }
        } else {
            // Each one alone and each one missing, the latest first: they are what the flush is about.
            for i in (0..n).rev().take(2 * self.options.subsets_per_point) {
                let mut fates = kept.clone();
                fates[i] = Fate::Lost;
                self.state(index, &fates, &named, "all but one")?;
                let mut fates = lost.clone();
                fates[i] = Fate::Kept;
                self.state(index, &fates, &named, "one alone")?;
            }
            for _ in 0..self.options.subsets_per_point {
                let fates: Vec<Fate> = (0..n).map(|_| fate(self.random.next() & 1 != 0)).collect();
                self.state(index, &fates, &named, "a random subset")?;
            }
        }
        let garbled: Vec<bool> = self.data.iter().map(|&i| self.can_garble(i)).collect();
        if garbled.contains(&true) {
            for others in [Fate::Lost, Fate::Kept] {
                let fates: Vec<Fate> = garbled
                    .iter()
                    .map(|&g| if g { Fate::Garbled } else { others })
                    .collect();
                self.state(index, &fates, &named, "garbled sectors")?;
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
                let names = &namings[(self.random.next() % namings.len() as u64) as usize];
                self.state(index, &fates, names, "torn writes")?;
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
    fn state(&mut self, index: usize, fates: &[Fate], named: &[bool], what: &str) -> ControlFlow<()> {
        let names_kept = || self.naming.iter().zip(named).filter(|(_, &kept)| kept).map(|(&i, _)| i);
        let survivors = self.data.iter().copied().zip(fates.iter().copied());
        let sum = survivors
            .chain(names_kept().map(|i| (i, Fate::Kept)))
            .filter(|(_, fate)| *fate != Fate::Lost)
            .fold(self.settled, |sum, (i, fate)| sum.wrapping_add(weight(i, fate)));
        let mut hasher = DefaultHasher::new();
        (sum, self.marks.len()).hash(&mut hasher);
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
        for i in names_kept() {
            if let Event::Name { naming, .. } = &self.events[i] {
                rename(&mut names, naming);
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
            description: format!(
                "{what} of {} changes after event {index}: {fates:?}, names {named:?}",
                fates.len()
            ),
        };
        (self.visit)(state, &point)
    }
}

/// A number for a change that survives so.
fn weight(event: usize, fate: Fate) -> u64 {
    let mut hasher = DefaultHasher::new();
    (event, fate).hash(&mut hasher);
    hasher.finish()
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
        Naming::Rename { to, file } => {
            // Also where the old name was never there.
            names.retain(|_, named| named != file);
            names.insert(to.clone(), *file);
        }
        Naming::Remove { path } => {
            names.remove(path);
        }
    }
}
