//! That bounds follow from the content, whatever came before, and that a change stays where it is.

use std::collections::BTreeMap;
use std::io::Read as _;

use flate2::read::DeflateDecoder;
use proptest::prelude::*;

use super::*;

/// A rope of groups that are so many bytes long.
struct Rig {
    rope: Rope<Arc<str>>,
    groups: BTreeMap<Arc<str>, usize>,
}

impl Rig {
    fn new() -> Self {
        Self { rope: Rope::new(b"<", b">"), groups: BTreeMap::new() }
    }

    fn set(&mut self, name: &str, bytes: Option<usize>) {
        let name: Arc<str> = name.into();
        match bytes {
            Some(bytes) => self.groups.insert(Arc::clone(&name), bytes),
            None => self.groups.remove(&name),
        };
        self.rope.change(name);
    }

    /// How many blocks were made anew, and how many groups were written for them.
    fn update(&mut self) -> (usize, usize) {
        let order: BTreeSet<Arc<str>> = self.groups.keys().map(Arc::clone).collect();
        let known: BTreeSet<[u8; 32]> =
            self.rope.blocks().iter().map(|block| block.digest).collect();
        let written = self.rope.update(&order, |name, out| {
            let begin = out.len();
            out.extend(name.bytes().cycle().take(self.groups[name]));
            std::iter::once(begin..out.len()).collect()
        });
        let groups = written.iter().map(|written| written.groups.len()).sum();
        let fresh = written.iter().filter(|written| !known.contains(&written.block.digest));
        (fresh.count(), groups)
    }

    fn digests(&self) -> Vec<[u8; 32]> {
        self.rope.blocks().iter().map(|block| block.digest).collect()
    }

    fn text(&self) -> String {
        let parts: Vec<u8> =
            self.rope.blocks().iter().flat_map(|block| block.json.to_vec()).collect();
        String::from_utf8(parts).unwrap()
    }

    fn expected(&self) -> String {
        let groups = self
            .groups
            .iter()
            .map(|(name, bytes)| -> String { name.chars().cycle().take(*bytes).collect() });
        format!("<{}>", groups.collect::<String>())
    }
}

#[test]
fn a_change_makes_its_own_block_and_no_other() {
    let mut rig = Rig::new();
    for at in 0..2000 {
        rig.set(&format!("group{at:04}"), Some(1500));
    }
    let (all, groups) = rig.update();
    assert_eq!(groups, 2000);
    assert!((30..=130).contains(&all), "{all} blocks of 3 MB");
    let before = rig.digests();
    for at in (0..2000).step_by(97) {
        rig.set(&format!("group{at:04}"), Some(1501));
        let (fresh, groups) = rig.update();
        assert!(fresh == 1 && groups < 120, "{fresh} blocks, {groups} groups");
        rig.set(&format!("group{at:04}"), Some(1500));
        rig.update();
    }
    assert_eq!(rig.digests(), before);
}

#[test]
fn what_is_set_as_it_was_makes_nothing_anew() {
    let mut rig = Rig::new();
    for at in 0..50 {
        rig.set(&format!("group{at}"), Some(20_000));
    }
    rig.update();
    let block = Arc::clone(&rig.rope.blocks()[3]);
    for at in 0..50 {
        rig.set(&format!("group{at}"), Some(20_000));
    }
    assert_eq!(rig.update().0, 0);
    assert!(Arc::ptr_eq(&block, &rig.rope.blocks()[3]));
}

#[test]
fn a_block_ends_at_its_largest_size() {
    let mut rig = Rig::new();
    for at in 0..3000 {
        rig.set(&format!("g{at}"), Some(400));
    }
    rig.set("long", Some(1_000_000));
    rig.update();
    let longest = rig.rope.blocks().iter().map(|block| block.json.len()).max().unwrap();
    assert!(longest < 1_000_000 + BLOCK_BYTES_MAX);
    let rest = rig.rope.blocks().iter().filter(|block| block.json.len() < 1_000_000).count();
    assert!(rest > 10);
    assert_eq!(rig.text(), rig.expected());
}

#[test]
fn ranges_are_of_the_block_that_they_came_with() {
    let mut rope: Rope<Arc<str>> = Rope::new(b"", b"");
    let order: BTreeSet<Arc<str>> = (0..100).map(|at| format!("group{at}").into()).collect();
    for name in &order {
        rope.change(Arc::clone(name));
    }
    let write = |name: &Arc<str>, out: &mut Vec<u8>| {
        out.extend([b'-'; 5000]);
        let begin = out.len();
        out.extend(name.bytes());
        std::iter::once(begin..out.len()).collect()
    };
    let mut seen = 0;
    for Written { block, groups } in rope.update(&order, write) {
        for (name, ranges) in groups {
            assert_eq!(&block.json[ranges[0].clone()], name.as_bytes());
            seen += 1;
        }
    }
    assert_eq!(seen, 100);
}

#[test]
fn a_block_ends_on_a_byte_and_can_be_read() {
    let text: Vec<u8> = (0..100_000_u32).flat_map(|at| at.to_string().into_bytes()).collect();
    let block = Block::new(&text);
    let mut stream = block.deflated.unwrap().to_vec();
    assert!(stream.ends_with(&[0, 0, 0xff, 0xff]), "what a sync flush ends with");
    stream.extend([3, 0]);
    let mut back = Vec::new();
    DeflateDecoder::new(&*stream).read_to_end(&mut back).unwrap();
    assert_eq!(back, text);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bounds_follow_from_the_content_alone(
        steps in prop::collection::vec(
            prop::collection::vec((0..40u32, prop::option::of(1..60_000usize)), 1..6), 1..12)
    ) {
        let mut rig = Rig::new();
        for step in steps {
            for (name, bytes) in step {
                rig.set(&format!("group{name}"), bytes);
            }
            rig.update();
            prop_assert_eq!(rig.text(), rig.expected());
        }
        let mut other = Rig::new();
        for (name, bytes) in rig.groups.iter().rev() {
            other.set(name, Some(*bytes));
            if bytes % 2 == 0 {
                other.update();
            }
        }
        other.update();
        prop_assert_eq!(rig.digests(), other.digests());
    }
}
