//! A long document as blocks of ready bytes, of which a change makes only its own anew.
//!
//! Groups that follow each other are joined into blocks of some ten kilobytes. Where a block ends is
//! decided by the group that it ends with (its name and how long it is), so that a change moves no other
//! block's bounds, and equal content has equal bounds whatever came before. Each block is deflated by
//! itself and ended on a byte, so that the blocks of a document make one gzip member.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Write as _};
use std::ops::{Bound, Range};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::DeflateEncoder;
use foldhash::fast::FixedState;
use smallvec::SmallVec;

/// Bytes of JSON that a block has on average.
const BLOCK_BYTES: u64 = 48 * 1024;
/// Bytes of JSON after which a block ends in any case; only a group longer than that makes one longer.
const BLOCK_BYTES_MAX: usize = 128 * 1024;
/// How hard blocks are compressed.
const LEVEL: u32 = 4;

/// A part of a document, made once.
#[derive(Debug)]
pub(super) struct Block {
    /// The text.
    pub(super) json: Bytes,
    /// The same deflated, without the mark of an end; memory knows no errors, so it is always there.
    pub(super) deflated: Option<Bytes>,
    /// The text's CRC-32.
    pub(super) crc: crc32fast::Hasher,
    /// Equal for equal text only.
    pub(super) digest: [u8; 32],
}

impl Block {
    /// Compresses `json`.
    pub(super) fn new(json: &[u8]) -> Self {
        Self::with_digest(json, sha256(json))
    }

    fn with_digest(json: &[u8], digest: [u8; 32]) -> Self {
        let mut crc = crc32fast::Hasher::new();
        crc.update(json);
        Self { json: Bytes::copy_from_slice(json), deflated: deflate(json).ok(), crc, digest }
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// Raw deflate, ended on a byte.
fn deflate(json: &[u8]) -> io::Result<Bytes> {
    let room = Vec::with_capacity(json.len() / 8 + 64);
    let mut encoder = DeflateEncoder::new(room, Compression::new(LEVEL));
    encoder.write_all(json)?;
    encoder.flush()?;
    Ok(Bytes::copy_from_slice(encoder.get_ref()))
}

/// A document's blocks between what it begins and ends with.
#[derive(Debug)]
pub(super) struct Rope<P> {
    head: Arc<Block>,
    /// By the place of the last group in it.
    blocks: BTreeMap<P, Placed>,
    tail: Arc<Block>,
    /// Places whose groups have changed, come or gone.
    changed: BTreeSet<P>,
    scratch: Vec<u8>,
}

/// A block in a rope.
#[derive(Debug)]
struct Placed {
    block: Arc<Block>,
    /// False when it ends only because the document does.
    closed: bool,
}

/// The places in a block of what a group consists of.
pub(super) type Ranges = SmallVec<[Range<usize>; 4]>;

/// A block made anew, and what is where in it.
#[derive(Debug)]
pub(super) struct Written {
    /// The block.
    pub(super) block: Arc<Block>,
    /// Its groups with the ranges that were told when they were written.
    pub(super) groups: Vec<(Arc<str>, Ranges)>,
}

impl<P: Ord + Clone + AsRef<str>> Rope<P> {
    /// A document without groups.
    pub(super) fn new(head: &[u8], tail: &[u8]) -> Self {
        Self {
            head: Arc::new(Block::new(head)),
            blocks: BTreeMap::new(),
            tail: Arc::new(Block::new(tail)),
            changed: BTreeSet::new(),
            scratch: Vec::new(),
        }
    }

    /// From now on a group at that place is another, new, or gone.
    pub(super) fn change(&mut self, place: P) {
        self.changed.insert(place);
    }

    /// True when blocks are to be made.
    pub(super) fn is_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// All blocks in their order.
    pub(super) fn blocks(&self) -> Vec<Arc<Block>> {
        let blocks = self.blocks.values().map(|placed| &placed.block);
        std::iter::once(&self.head).chain(blocks).chain([&self.tail]).map(Arc::clone).collect()
    }

    /// Makes the blocks of what has changed; `write` appends the group at a place of `order`.
    pub(super) fn update(
        &mut self,
        order: &BTreeSet<P>,
        mut write: impl FnMut(&P, &mut Vec<u8>) -> Ranges,
    ) -> Vec<Written> {
        let mut made = Made::default();
        while let Some(first) = self.changed.first().cloned() {
            self.update_from(&first, order, &mut write, &mut made);
        }
        made.written
    }

    /// Makes blocks from the one that `first` falls into until their bounds are the old ones again.
    fn update_from(
        &mut self,
        first: &P,
        order: &BTreeSet<P>,
        write: &mut impl FnMut(&P, &mut Vec<u8>) -> Ranges,
        made: &mut Made,
    ) {
        // Only the last block can be open: what comes after it belongs into it.
        let mut before = self.blocks.range(..first).rev().filter(|(_, placed)| placed.closed);
        let mut start = before.next().map(|(place, _)| place.clone());
        let mut text = std::mem::take(&mut self.scratch);
        let (mut groups, mut last) = (Vec::new(), None);
        for place in order.range((after(start.as_ref()), Bound::Unbounded)) {
            let begin = text.len();
            let ranges = write(place, &mut text);
            groups.push((Arc::from(place.as_ref()), ranges));
            last = Some(place);
            if closes(place.as_ref(), text.len() - begin, text.len()) {
                let as_before = self.cut(start.as_ref(), place, made);
                self.put(place, made.block(&text, std::mem::take(&mut groups)), true);
                text.clear();
                start = Some(place.clone());
                if as_before {
                    self.scratch = text;
                    return;
                }
            }
        }
        // The document ends here.
        let gone: Vec<P> = self
            .blocks
            .range((after(start.as_ref()), Bound::Unbounded))
            .map(|(place, _)| place.clone())
            .collect();
        for place in gone {
            made.keep(self.blocks.remove(&place));
        }
        if let (Some(last), false) = (last, groups.is_empty()) {
            self.put(last, made.block(&text, groups), false);
        }
        self.changed.clear();
        text.clear();
        self.scratch = text;
    }

    /// Takes the blocks out that end after `start` and not after `last`; true when one of these was closed
    /// at `last`, so that what follows is as it was.
    fn cut(&mut self, start: Option<&P>, last: &P, made: &mut Made) -> bool {
        self.changed = self.changed.split_off(last);
        self.changed.remove(last);
        let as_before = self.blocks.get(last).is_some_and(|placed| placed.closed);
        let gone = self.blocks.range((after(start), Bound::Included(last)));
        let gone: Vec<P> = gone.map(|(place, _)| place.clone()).collect();
        for place in gone {
            made.keep(self.blocks.remove(&place));
        }
        as_before
    }

    fn put(&mut self, last: &P, block: Arc<Block>, closed: bool) {
        self.blocks.insert(last.clone(), Placed { block, closed });
    }
}

fn after<P>(start: Option<&P>) -> Bound<&P> {
    start.map_or(Bound::Unbounded, Bound::Excluded)
}

/// What an update made, and what it took out and may find again.
#[derive(Debug, Default)]
struct Made {
    written: Vec<Written>,
    old: HashMap<[u8; 32], Arc<Block>, FixedState>,
}

impl Made {
    fn keep(&mut self, placed: Option<Placed>) {
        self.old.extend(placed.map(|placed| (placed.block.digest, placed.block)));
    }

    fn block(&mut self, text: &[u8], groups: Vec<(Arc<str>, Ranges)>) -> Arc<Block> {
        let digest = sha256(text);
        let known = self.old.get(&digest).map(Arc::clone);
        let block = known.unwrap_or_else(|| Arc::new(Block::with_digest(text, digest)));
        self.written.push(Written { block: Arc::clone(&block), groups });
        block
    }
}

/// Whether a block ends with the group of that name, which is `bytes` long and makes the block `total`
/// bytes long. A group ends a block with a probability in proportion to its length, which counts in powers
/// of two, so that few changes of a group change what it decides.
fn closes(name: &str, bytes: usize, total: usize) -> bool {
    let bytes = u64::try_from(bytes.next_power_of_two()).unwrap_or(u64::MAX);
    // The same in every build of the program, which a hash of the library's choice may not be.
    let drawn = (u64::from(crc32fast::hash(name.as_bytes())) * BLOCK_BYTES) >> 32;
    drawn < bytes || total >= BLOCK_BYTES_MAX
}

#[cfg(test)]
mod tests;
