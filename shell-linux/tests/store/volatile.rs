//! Files that forget what was not synced: what they are now, and what a loss of power leaves.
//!
//! The bytes and attributes of a file last once the file has been synced, a name once its
//! directory has been. What was not synced may last all the same, each change of a name by itself.

use std::collections::{BTreeMap, BTreeSet};

/// The number of the topmost directory.
pub(crate) const TOP: u64 = 1;

/// What is in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Content {
    pub(crate) bytes: Vec<u8>,
    pub(crate) attributes: BTreeMap<String, Vec<u8>>,
}

/// A file or directory.
#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) is_dir: bool,
    pub(crate) now: Content,
    lasting: Content,
}

/// A directory and a name in it.
pub(crate) type Place = (u64, String);
type Names = BTreeMap<Place, u64>;
/// Names that are given or taken in one step.
type Step = Vec<(Place, Option<u64>)>;
/// All files by their paths.
pub(crate) type Files = BTreeMap<String, Content>;

#[derive(Debug)]
pub(crate) struct Volatile {
    nodes: Vec<Node>,
    pub(crate) names: Names,
    lasting: Names,
    pending: Vec<Step>,
    /// What a loss of power could have left since this was last taken.
    seen: BTreeSet<Files>,
}

impl Volatile {
    pub(crate) fn new() -> Self {
        let top = || Node { is_dir: true, ..Node::default() };
        Self {
            nodes: vec![top(), top()],
            names: Names::new(),
            lasting: Names::new(),
            pending: Vec::new(),
            seen: BTreeSet::new(),
        }
    }

    pub(crate) fn node(&self, number: u64) -> &Node {
        &self.nodes[usize::try_from(number).unwrap()]
    }

    pub(crate) fn now(&mut self, number: u64) -> &mut Content {
        &mut self.nodes[usize::try_from(number).unwrap()].now
    }

    pub(crate) fn find(&self, place: &Place) -> Option<u64> {
        self.names.get(place).copied()
    }

    /// Names that lead to a node.
    pub(crate) fn links(&self, number: u64) -> u32 {
        u32::try_from(self.names.values().filter(|&&named| named == number).count()).unwrap()
    }

    pub(crate) fn make(&mut self, place: Place, is_dir: bool) -> u64 {
        let number = self.nodes.len() as u64;
        self.nodes.push(Node { is_dir, ..Node::default() });
        self.step(vec![(place, Some(number))]);
        number
    }

    pub(crate) fn step(&mut self, step: Step) {
        apply(&mut self.names, &step);
        self.pending.push(step);
    }

    /// Makes the bytes of a file last, and with `all` its attributes.
    pub(crate) fn sync_file(&mut self, number: u64, all: bool) {
        let node = &mut self.nodes[usize::try_from(number).unwrap()];
        node.lasting.bytes.clone_from(&node.now.bytes);
        if all {
            node.lasting.attributes.clone_from(&node.now.attributes);
        }
    }

    /// Makes the names of a directory last.
    pub(crate) fn sync_names(&mut self, directory: u64) {
        let here = |step: &Step| step.iter().any(|((dir, _), _)| *dir == directory);
        for step in self.pending.extract_if(.., |step| here(step)) {
            apply(&mut self.lasting, &step);
        }
    }

    /// All that a loss of power can leave at this moment.
    pub(crate) fn survivors(&self) -> BTreeSet<Files> {
        assert!(self.pending.len() < 12, "too much to look at: {:?}", self.pending);
        let mut all = BTreeSet::new();
        for chosen in 0_u32..1 << self.pending.len() {
            let mut names = self.lasting.clone();
            let steps = self.pending.iter().enumerate();
            for (_, step) in steps.filter(|(bit, _)| chosen >> bit & 1 == 1) {
                apply(&mut names, step);
            }
            for content in [|node: &Node| node.lasting.clone(), |node: &Node| node.now.clone()] {
                let mut files = Files::new();
                self.walk(&names, TOP, "", content, &mut files);
                all.insert(files);
            }
        }
        all
    }

    fn walk(
        &self,
        names: &Names,
        directory: u64,
        path: &str,
        content: fn(&Node) -> Content,
        files: &mut Files,
    ) {
        for ((_, name), &number) in names.iter().filter(|((dir, _), _)| *dir == directory) {
            let path = format!("{path}/{name}");
            let node = self.node(number);
            if node.is_dir {
                self.walk(names, number, &path, content, files);
            } else {
                files.insert(path, content(node));
            }
        }
    }

    /// Notes what a loss of power would leave.
    pub(crate) fn look(&mut self) {
        let survivors = self.survivors();
        self.seen.extend(survivors);
    }

    /// What a loss of power could have left since the last call.
    pub(crate) fn take_seen(&mut self) -> BTreeSet<Files> {
        std::mem::take(&mut self.seen)
    }
}

fn apply(names: &mut Names, step: &Step) {
    for (place, number) in step {
        match number {
            Some(number) => names.insert(place.clone(), *number),
            None => names.remove(place),
        };
    }
}
