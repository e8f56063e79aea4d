//! Whether the file is a whole tree, looked at before LMDB is: it trusts every page, and one that is damaged makes it end
//! the process (an assertion, `SIGSEGV`) or pass over records without a word.
//!
//! Read are branch and leaf pages, the heads of overflow pages and the list of free pages, by `pread`, so that a sector
//! that cannot be read is an error and no `SIGBUS`. Every page must be where it says it is and be reached once, its
//! nodes must lie within it, keys must be in order within the bounds of the branches above, and pages and entries be as
//! many as the tree says: a page of before that was never overwritten has another number of them. Values are not looked
//! at; each has a checksum ([`super::checksum`]). A store that is too large for the time there is at a start is used
//! unseen, as every store was before; an error of the disk says nothing of what is on it and is not damage.
//!
//! The layout is LMDB's on this machine's word size and byte order (`mdb.c`: `MDB_page`, `MDB_node`, `MDB_db`, `MDB_meta`).

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::StoreError;

const WORD: usize = size_of::<usize>();
/// Page number, padding, flags, lower and upper bound of what is free.
const PAGE_HEAD: usize = WORD + 8;
/// Size or page number in two halves, flags, length of the key.
const NODE_HEAD: usize = 8;
/// `MDB_db`.
const TREE: usize = 8 + 5 * WORD;
const META_PAGES: usize = 2;
/// systemd gives the hub 30 s to start.
const LONGEST: Duration = Duration::from_secs(10);
const MAGIC: u32 = 0xBEEF_C0DE;
const DATA_VERSION: u32 = 1;
/// No root: the tree is empty.
const NOWHERE: usize = usize::MAX;
/// `CURSOR_STACK`: LMDB's own bound.
const MAX_DEPTH: usize = 32;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const OVERFLOW: u16 = 0x04;
const META: u16 = 0x08;
/// All that says what kind a page is, those of sorted duplicates, which we have none of, included.
const KINDS: u16 = BRANCH | LEAF | OVERFLOW | META | 0x20 | 0x40;

const BIG: u16 = 0x01;
const SUB_TREE: u16 = 0x02;
const DUPLICATES: u16 = 0x04;

/// Fails with [`StoreError::Damaged`] if the file is there, has anything in it and is not a whole tree.
pub(super) fn check(path: &Path) -> Result<(), StoreError> {
    check_within(path, LONGEST, &|file, bytes, at| file.read_exact_at(bytes, at))
}

/// Fills the bytes with what is at that place of the file.
type Read<'r> = dyn Fn(&File, &mut [u8], u64) -> io::Result<()> + 'r;

fn check_within(path: &Path, longest: Duration, read: &Read<'_>) -> Result<(), StoreError> {
    let unreadable = |error: io::Error| StoreError::Unreadable(format!("{}: {error}", path.display()));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unreadable(error)),
    };
    // A new store that nothing was written to yet.
    if file.metadata().map_err(unreadable)?.len() == 0 {
        return Ok(());
    }
    let disk = Disk { file: &file, read, until: Instant::now() + longest, stopped: Cell::new(None) };
    let walked = Walk::open(&disk).and_then(|mut walk| walk.all());
    match (walked, disk.stopped.take()) {
        (_, Some(Stopped::Unreadable(error))) => Err(unreadable(error)),
        (_, Some(Stopped::Late)) => {
            tracing::warn!(
                "the store is too large to be looked at as a whole on this disk, and is used as it is"
            );
            Ok(())
        }
        (Err(reason), None) => Err(StoreError::Damaged(reason)),
        (Ok(()), None) => Ok(()),
    }
}

/// The file, read for a bounded time: whoever waits for the hub waits for this.
struct Disk<'f> {
    file: &'f File,
    read: &'f Read<'f>,
    until: Instant,
    /// Why it was not read to the end, if that says nothing of what is in it.
    stopped: Cell<Option<Stopped>>,
}

enum Stopped {
    /// An error of the disk.
    Unreadable(io::Error),
    /// It took too long.
    Late,
}

impl Disk<'_> {
    fn read(&self, bytes: &mut [u8], at: u64) -> Checked<()> {
        if Instant::now() >= self.until {
            self.stopped.set(Some(Stopped::Late));
            return Err("it takes too long".to_owned());
        }
        (self.read)(self.file, bytes, at).map_err(|error| {
            let reason = error.to_string();
            if error.kind() != io::ErrorKind::UnexpectedEof {
                self.stopped.set(Some(Stopped::Unreadable(error)));
            }
            reason
        })
    }
}

/// What is wrong, for the log.
type Checked<T> = Result<T, String>;

/// A tree as its parent describes it.
#[derive(Debug, Clone, Copy)]
struct Tree {
    flags: u16,
    depth: usize,
    branches: usize,
    leaves: usize,
    overflows: usize,
    entries: usize,
    root: usize,
}

/// The same, as it was found.
#[derive(Debug, Default)]
struct Found {
    branches: usize,
    leaves: usize,
    overflows: usize,
    entries: usize,
}

/// How keys of a tree are to be read, and its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Transactions, as numbers, and the pages that each has freed.
    Free,
    /// Names of tables, and trees.
    Tables,
    /// Bytes and bytes.
    Table,
}

/// What is still to be looked at.
struct Task {
    page: usize,
    level: usize,
    /// Keys are not below the one and below the other.
    from: Option<Vec<u8>>,
    to: Option<Vec<u8>>,
}

struct Walk<'f> {
    disk: &'f Disk<'f>,
    page_size: usize,
    last_page: usize,
    trees: [Tree; 2],
    /// A bit a page that was reached.
    reached: Vec<u64>,
    free: Vec<usize>,
}

fn half(bytes: &[u8], at: usize) -> Checked<u16> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map(|found| u16::from_ne_bytes(*found)).ok_or_else(|| "something is cut short".to_owned())
}

fn quad(bytes: &[u8], at: usize) -> Checked<u32> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map(|found| u32::from_ne_bytes(*found)).ok_or_else(|| "something is cut short".to_owned())
}

fn word(bytes: &[u8], at: usize) -> Checked<usize> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map(|found| usize::from_ne_bytes(*found)).ok_or_else(|| "something is cut short".to_owned())
}

impl Tree {
    fn read(bytes: &[u8]) -> Checked<Self> {
        Ok(Self {
            flags: half(bytes, 4)?,
            depth: half(bytes, 6)?.into(),
            branches: word(bytes, 8)?,
            leaves: word(bytes, 8 + WORD)?,
            overflows: word(bytes, 8 + 2 * WORD)?,
            entries: word(bytes, 8 + 3 * WORD)?,
            root: word(bytes, 8 + 4 * WORD)?,
        })
    }
}

impl<'f> Walk<'f> {
    /// Reads the meta pages and takes the one that LMDB would take.
    fn open(disk: &'f Disk<'f>) -> Checked<Self> {
        let mut head = [0; PAGE_HEAD + 8 + 4 * WORD + 2 * TREE];
        let (mut transactions, mut taken) = ([0; META_PAGES], None);
        let mut at = 0;
        for number in 0..META_PAGES {
            disk.read(&mut head, at).map_err(|error| format!("a meta page cannot be read: {error}"))?;
            let meta = &head[PAGE_HEAD..];
            if half(&head, WORD + 2)? & KINDS != META
                || quad(meta, 0)? != MAGIC
                || quad(meta, 4)? != DATA_VERSION
            {
                return Err("a meta page is none".to_owned());
            }
            let trees = &meta[8 + 2 * WORD..];
            let page_size = quad(trees, 0)? as usize;
            if !page_size.is_power_of_two() || !(512..=1 << 16).contains(&page_size) {
                return Err(format!("its pages have {page_size} bytes"));
            }
            let transaction = word(trees, 2 * TREE + WORD)?;
            transactions[number] = transaction;
            if number == 0 || transaction > transactions[0] {
                let last_page = word(trees, 2 * TREE)?;
                taken = Some((page_size, last_page, [Tree::read(trees)?, Tree::read(&trees[TREE..])?]));
            }
            at = page_size as u64;
        }
        let (page_size, last_page, trees) = taken.ok_or("it has no meta page")?;
        // They take turns, each is on the disk before the other is written, and a new file has two of number 0.
        let [even, odd] = transactions;
        if even % 2 != 0 || odd % 2 == 0 && odd != 0 || even.abs_diff(odd) > 1 {
            return Err(format!("its last transactions are {even} and {odd}"));
        }
        let length = disk.file.metadata().map_err(|error| error.to_string())?.len();
        // The file is kept longer than what is in use (`Environment::reserve`).
        if last_page as u64 >= length / page_size as u64 {
            return Err(format!("it has {length} bytes and counts on {last_page} pages"));
        }
        Ok(Self { disk, page_size, last_page, trees, reached: vec![0; last_page / 64 + 1], free: Vec::new() })
    }

    fn all(&mut self) -> Checked<()> {
        let [free, tables] = self.trees;
        self.tree(free, Kind::Free)?;
        self.tree(tables, Kind::Tables)?;
        for page in std::mem::take(&mut self.free) {
            self.reach(page, 1).map_err(|error| format!("a free page is none: {error}"))?;
        }
        Ok(())
    }

    fn read(&self, page: usize, length: usize) -> Checked<Vec<u8>> {
        let mut bytes = vec![0; length];
        let at = page as u64 * self.page_size as u64;
        self.disk.read(&mut bytes, at).map_err(|error| format!("page {page} cannot be read: {error}"))?;
        if word(&bytes, 0)? != page {
            return Err(format!("page {page} is another one"));
        }
        Ok(bytes)
    }

    /// Takes note of pages that belong to something, each for the first time.
    fn reach(&mut self, first: usize, count: usize) -> Checked<()> {
        let end = first.checked_add(count).filter(|end| *end <= self.last_page + 1);
        let end = end.filter(|_| first >= META_PAGES).ok_or_else(|| format!("there is no page {first}"))?;
        for page in first..end {
            let bit = 1 << (page % 64);
            match self.reached.get_mut(page / 64) {
                Some(bits) if *bits & bit == 0 => *bits |= bit,
                _ => return Err(format!("page {page} has two places")),
            }
        }
        Ok(())
    }

    fn tree(&mut self, tree: Tree, kind: Kind) -> Checked<()> {
        let mut found = Found::default();
        let mut tasks = Vec::new();
        if tree.root != NOWHERE {
            tasks.push(Task { page: tree.root, level: 1, from: None, to: None });
        }
        // `MDB_INTEGERKEY`; ours have no options.
        let flags = if kind == Kind::Free { 0x08 } else { 0 };
        if tree.depth > MAX_DEPTH || tree.flags != flags {
            return Err(format!("a tree has {} levels and flags {:#x}", tree.depth, tree.flags));
        }
        while let Some(task) = tasks.pop() {
            self.reach(task.page, 1)?;
            let bytes = self.read(task.page, self.page_size)?;
            let nodes = Nodes::of(&bytes, kind, &task)?;
            match half(&bytes, WORD + 2)? & KINDS {
                BRANCH if task.level < tree.depth && nodes.count >= 2 => {
                    found.branches += 1;
                    self.branch(&nodes, task, &mut tasks)?;
                }
                LEAF if task.level == tree.depth && nodes.count >= 1 => {
                    found.leaves += 1;
                    found.entries += nodes.count;
                    for number in 0..nodes.count {
                        self.entry(&nodes, number, kind, &mut found)?;
                    }
                }
                _ => return Err(format!("page {} is no page of a tree", task.page)),
            }
        }
        let told = [tree.branches, tree.leaves, tree.overflows, tree.entries];
        let there = [found.branches, found.leaves, found.overflows, found.entries];
        if told == there { Ok(()) } else { Err(format!("a tree should have {told:?} and has {there:?}")) }
    }

    fn branch(&self, nodes: &Nodes<'_>, task: Task, tasks: &mut Vec<Task>) -> Checked<()> {
        // Backwards: the first is then looked at first, and pages are mostly read in their order.
        let mut to = task.to;
        for number in (0..nodes.count).rev() {
            let node = nodes.node(number)?;
            let from = if number == 0 { task.from.clone() } else { Some(node.key.to_vec()) };
            tasks.push(Task { page: node.child, level: task.level + 1, from: from.clone(), to });
            to = from;
        }
        Ok(())
    }

    fn entry(&mut self, nodes: &Nodes<'_>, number: usize, kind: Kind, found: &mut Found) -> Checked<()> {
        let node = nodes.node(number)?;
        let sub_tree = node.flags & SUB_TREE != 0;
        if node.flags & DUPLICATES != 0
            || sub_tree != (kind == Kind::Tables)
            || sub_tree && node.flags & BIG != 0
        {
            return Err("a value is of a kind that is not in use".to_owned());
        }
        let overflow;
        let value = if node.flags & BIG != 0 {
            let first = word(node.value, 0)?;
            let all = if kind == Kind::Free { PAGE_HEAD + node.length } else { PAGE_HEAD };
            overflow = self.read(first, all)?;
            let pages = quad(&overflow, WORD + 4)? as usize;
            // More than are needed, where a longer value was overwritten in the same transaction.
            let enough = pages >= (PAGE_HEAD + node.length).div_ceil(self.page_size);
            if half(&overflow, WORD + 2)? & KINDS != OVERFLOW || !enough {
                return Err(format!("page {first} is no overflow page"));
            }
            self.reach(first, pages)?;
            found.overflows += pages;
            &overflow[PAGE_HEAD..]
        } else {
            node.value
        };
        match kind {
            Kind::Table => Ok(()),
            Kind::Tables => self.tree(Tree::read(value)?, Kind::Table),
            Kind::Free => {
                let count = word(value, 0)?;
                let pages = value[WORD..].chunks_exact(WORD);
                if count > pages.len() {
                    return Err("a list of free pages is cut short".to_owned());
                }
                for page in pages.take(count) {
                    self.free.push(word(page, 0)?);
                }
                Ok(())
            }
        }
    }
}

/// The nodes of a page, of which bounds and order of the keys are known to be good.
struct Nodes<'p> {
    page: &'p [u8],
    branch: bool,
    count: usize,
}

/// One of them.
struct Node<'p> {
    flags: u16,
    key: &'p [u8],
    /// Of a branch.
    child: usize,
    /// Of a leaf: what is in the page of the value, and how long it is.
    value: &'p [u8],
    length: usize,
}

impl<'p> Nodes<'p> {
    fn of(page: &'p [u8], kind: Kind, task: &Task) -> Checked<Self> {
        let bad = |what: &str| Err(format!("page {}: {what}", task.page));
        let (lower, upper) = (half(page, WORD + 4)? as usize, half(page, WORD + 6)? as usize);
        if lower < PAGE_HEAD || lower % 2 != 0 || lower > upper || upper > page.len() {
            return bad("what is free of it is none");
        }
        let branch = half(page, WORD + 2)? & BRANCH != 0;
        let nodes = Self { page, branch, count: (lower - PAGE_HEAD) / 2 };
        let mut last: Option<&[u8]> = None;
        for number in 0..nodes.count {
            if (half(page, PAGE_HEAD + 2 * number)? as usize) < upper {
                return bad("a node lies in what is free");
            }
            let node = nodes.node(number)?;
            if branch && number == 0 {
                // It has no key: everything below the second one is here.
                continue;
            }
            let below = |one: &[u8], other: &[u8]| kind.is_below(one, other);
            let in_order = last.is_none_or(|last| below(last, node.key))
                && task.from.as_deref().is_none_or(|from| !below(node.key, from))
                && task.to.as_deref().is_none_or(|to| below(node.key, to));
            if !in_order || kind == Kind::Free && node.key.len() != WORD {
                return bad("its keys are not in order");
            }
            last = Some(node.key);
        }
        Ok(nodes)
    }

    fn node(&self, number: usize) -> Checked<Node<'p>> {
        let at = half(self.page, PAGE_HEAD + 2 * number)? as usize;
        let (low, high) = (half(self.page, at)?, half(self.page, at + 2)?);
        let (flags, key) = (half(self.page, at + 4)?, half(self.page, at + 6)? as usize);
        let (low, high) = if cfg!(target_endian = "little") { (low, high) } else { (high, low) };
        let length = usize::from(low) | usize::from(high) << 16;
        let rest = self.page.get(at + NODE_HEAD..).ok_or("a node is cut short")?;
        let (key, rest) = rest.split_at_checked(key).ok_or("a key is cut short")?;
        if self.branch {
            // The flags are the upper part of a page number that needs it.
            let upper = if WORD > 4 { u64::from(flags) << 32 } else { 0 };
            let child = usize::try_from(length as u64 | upper).map_err(|error| error.to_string())?;
            return Ok(Node { flags: 0, key, child, value: &[], length: 0 });
        }
        let inside = if flags & BIG != 0 { WORD } else { length };
        let value = rest.get(..inside).ok_or("a value is cut short")?;
        Ok(Node { flags, key, child: 0, value, length })
    }
}

impl Kind {
    fn is_below(self, one: &[u8], other: &[u8]) -> bool {
        match (self, word(one, 0), word(other, 0)) {
            (Self::Free, Ok(one), Ok(other)) => one < other,
            _ => one < other,
        }
    }
}

#[cfg(test)]
mod tests;
