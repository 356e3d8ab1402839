//! The driver against the core's own ring and parser: what is sent is what is understood.

use proptest::prelude::*;
use sluice_core::blk::request::{Data, RangeWire};
use sluice_core::blk::{BlkFeatures, BlkRequest, Limits, Range, Verdict, parse};
use sluice_core::limits::{RANGES_MAX, SEGMENTS_MAX};
use sluice_core::memory::{MemoryMap, Region, RegionId, Segment, SharedMemory};
use sluice_core::virtqueue::layout::{DESC_AVAIL, DESC_USED, PackedDescriptor};
use sluice_core::virtqueue::packed::parts;
use sluice_core::virtqueue::{ChainToken, PackedBase, PackedRing, Ring, SplitRing, chain};
use zerocopy::byteorder::little_endian::{U32, U64};

use super::*;
use crate::hostile::Hostile;
use crate::memory::FlatMemory;

const GUEST: u64 = 0x10_0000;
const SIZE: u16 = 16;
const LAYOUT: Layout = Layout::new(RegionId(0), GUEST, 0, SIZE, 12);
/// One more than a power of two.
const PACKED: Layout = Layout::packed(RegionId(0), GUEST, 0, SIZE + 1, 12);
/// Where the data of the tests begins: a page for each head, with room around it.
const DATA: u64 = 0x1_0000;

/// The device's side of one queue.
struct World {
    mem: FlatMemory,
    map: MemoryMap,
    driver: Driver,
    ring: Ring,
    limits: Limits,
    /// Chains taken and not given back, with what the driver meant.
    taken: Vec<(ChainToken, Segment, Tag)>,
}

impl World {
    fn new(event_idx: bool, packed: bool) -> Self {
        let mem = FlatMemory::new(&[0x4_0000]);
        let mut map = MemoryMap::new();
        let region = Region { id: RegionId(0), guest: GUEST, user: 0x7000_0000, size: 0x4_0000 };
        map.add(region).unwrap();
        let layout = if packed { PACKED } else { LAYOUT };
        let (rings, size) = (layout.rings(), layout.size);
        let driver = Driver::new(&mem, layout, event_idx).unwrap();
        let ring = if packed {
            Ring::Packed(PackedRing::start(rings, size, PackedBase::START, event_idx))
        } else {
            Ring::Split(SplitRing::start(&mem, rings, size, 0, event_idx).unwrap())
        };
        let limits = Limits {
            capacity_sectors: 1 << 20,
            block_sectors: 1,
            poisoned: false,
            read_only: false,
            features: BlkFeatures::all(),
        };
        Self { mem, map, driver, ring, limits, taken: Vec::new() }
    }

    /// Takes the next chain as the device and says what it understood.
    fn take(
        &mut self,
        tag: Tag,
    ) -> (BlkRequest, Data, [Segment; SEGMENTS_MAX], [Range; RANGES_MAX]) {
        assert_ne!(self.ring.available(&self.mem).unwrap(), 0);
        let mut segments = [Segment::EMPTY; SEGMENTS_MAX];
        let mut ranges = [Range::EMPTY; RANGES_MAX];
        let (mem, map) = (&self.mem, &self.map);
        let (name, chain) = match &mut self.ring {
            Ring::Split(ring) => {
                let head = ring.take(mem).unwrap();
                let first = ring.descriptor(mem, head).unwrap();
                (head, chain::walk(mem, map, ring, head, first, &mut segments))
            }
            Ring::Packed(ring) => {
                let chain =
                    chain::take_packed(mem, map, ring, None, &mut segments).unwrap().unwrap();
                (parts(chain.token).0, chain)
            }
        };
        assert_eq!(name, tag.0);
        assert_eq!(chain.fault, None);
        let verdict = parse(&self.mem, &self.limits, &chain, &mut segments, &mut ranges);
        let Verdict::Accept(request, data, status) = verdict else { panic!("{verdict:?}") };
        self.taken.push((chain.token, status, tag));
        (request, data, segments, ranges)
    }

    /// Gives one of the taken chains back as the device, and reaps it.
    fn give_back(&mut self, which: usize) {
        let (token, status, tag) = self.taken.swap_remove(which);
        let code = tag.0.to_le_bytes()[0];
        self.mem.write(status.region(), status.offset, &code).unwrap();
        self.ring.write_used(&self.mem, 0, token, 7).unwrap();
        self.ring.publish(&self.mem, 1).unwrap();
        self.ring.forget(token);
        let done = Completion { tag, status: code, used_len: 7 };
        assert_eq!(self.driver.reap(&self.mem), Ok(Some(done)));
        assert_eq!(self.driver.reap(&self.mem), Ok(None));
        assert!(!self.driver.is_in_flight(tag));
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    (0..=16_u8, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(header_cut, header_inline, status_inline, indirect)| Shape {
            header_cut,
            header_inline,
            status_inline,
            indirect,
        },
    )
}

/// A request in miniature: its kind as a number, its sector, the lengths of its buffers or the
/// number of its ranges, its shape, and which chain to give back before it.
fn steps() -> impl Strategy<Value = Vec<(u8, u64, Vec<u32>, Shape, prop::sample::Index)>> {
    let lengths = prop::collection::vec(1..64_u32, 1..6);
    prop::collection::vec(
        (0..5_u8, 0..1000_u64, lengths, shapes(), any::<prop::sample::Index>()),
        1..80,
    )
}

proptest! {
    #[test]
    fn what_the_driver_sends_is_what_the_core_understands(
        event_idx: bool,
        packed: bool,
        steps in steps(),
    ) {
        let mut world = World::new(event_idx, packed);
        for (kind, sector, mut lengths, shape, which) in steps {
            // Whole sectors in the end, cut anywhere.
            let total: u32 = lengths.iter().sum();
            lengths.push(total.next_multiple_of(512) - total + 512);
            let mut at = GUEST + DATA + 16 + 0x1000 * (sector % 16);
            let buffers: Vec<Buffer> = lengths
                .iter()
                .map(|&len| {
                    let buffer = Buffer { addr: at, len };
                    at += u64::from(len) + 17;
                    buffer
                })
                .collect();
            let ranges: Vec<RangeWire> = lengths
                .iter()
                .map(|&len| RangeWire {
                    sector: U64::new(sector),
                    sectors: U32::new(len),
                    flags: U32::ZERO,
                })
                .collect();
            let spec = match kind {
                0 => RequestSpec::read(sector, &buffers),
                1 => RequestSpec::write(sector, &buffers),
                2 => RequestSpec::flush(),
                3 => RequestSpec::discard(&ranges),
                _ => RequestSpec::write_zeroes(&ranges),
            };
            let spec = spec.shaped(shape);
            let tag = loop {
                if let Some(tag) = world.driver.add(&world.mem, &spec) {
                    break tag;
                }
                world.give_back(which.index(world.taken.len()));
            };
            prop_assert!(world.driver.is_in_flight(tag));
            prop_assert!(world.ring.available(&world.mem) == Ok(0), "not before it is exposed");
            world.driver.expose(&world.mem);
            let (request, data, segments, taken_ranges) = world.take(tag);
            let count = u8::try_from(ranges.len()).unwrap();
            let expected = match spec.kind {
                Kind::Read => BlkRequest::Read { offset: sector * 512 },
                Kind::Write => BlkRequest::Write { offset: sector * 512 },
                Kind::Flush => BlkRequest::Flush,
                Kind::Discard => BlkRequest::Discard { count },
                _ => BlkRequest::WriteZeroes { count },
            };
            prop_assert_eq!(request, expected);
            if kind < 2 {
                let first = usize::from(data.first);
                let found = segments[first..first + usize::from(data.count)].iter();
                let found: Vec<Buffer> = found
                    .map(|s| Buffer { addr: GUEST + s.offset, len: s.len })
                    .collect();
                prop_assert_eq!(found, buffers);
            }
            if kind > 2 {
                for (found, range) in taken_ranges.iter().zip(&ranges) {
                    prop_assert_eq!(found.offset, range.sector.get() * 512);
                    prop_assert_eq!(found.len, u64::from(range.sectors.get()) * 512);
                }
            }
        }
        while !world.taken.is_empty() {
            world.give_back(0);
        }
        prop_assert_eq!(world.driver.free_descriptors(), world.driver.layout().size);
        prop_assert_eq!(world.driver.in_flight(), 0);
    }
}

#[test]
fn a_kick_is_due_exactly_when_the_device_asks() {
    for (event_idx, packed) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut world = World::new(event_idx, packed);
        world.ring.disarm(&world.mem).unwrap();
        assert!(!world.ring.arm(&world.mem).unwrap());
        let tag = world.driver.add(&world.mem, &RequestSpec::flush()).unwrap();
        assert!(!world.driver.should_kick(&world.mem), "nothing is exposed");
        world.driver.expose(&world.mem);
        assert!(world.driver.should_kick(&world.mem));
        assert!(!world.driver.should_kick(&world.mem), "asked and answered");
        world.take(tag);
        world.ring.disarm(&world.mem).unwrap();
        let tag = world.driver.add(&world.mem, &RequestSpec::flush()).unwrap();
        world.driver.expose(&world.mem);
        assert!(!world.driver.should_kick(&world.mem), "the device polls");
        world.take(tag);
    }
}

#[test]
fn an_interrupt_is_due_exactly_when_the_driver_asks() {
    for (event_idx, packed) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut world = World::new(event_idx, packed);
        let mut turn = |before: &dyn Fn(&mut Driver, &FlatMemory)| {
            let tag = world.driver.add(&world.mem, &RequestSpec::flush()).unwrap();
            world.driver.expose(&world.mem);
            world.take(tag);
            before(&mut world.driver, &world.mem);
            world.give_back(0);
            world.ring.wants_notify(&world.mem, 1).unwrap()
        };
        assert!(turn(&|driver, mem| assert_eq!(driver.arm(mem), Ok(false))));
        assert!(!turn(&|driver, mem| driver.disarm(mem).unwrap()));
        assert!(turn(&|driver, mem| assert_eq!(driver.arm(mem), Ok(false))));
        let after = |driver: &mut Driver, mem: &FlatMemory| {
            // A flush has two descriptors.
            let more = if driver.layout().packed { 2 } else { 1 };
            driver.arm_after(mem, more).unwrap();
        };
        assert_eq!(turn(&after), !event_idx, "one is let pass");
    }
}

#[test]
fn a_device_that_breaks_the_queue_is_named_and_nothing_panics() {
    let mut world = World::new(false, false);
    let hostile = Hostile { rings: LAYOUT.rings(), size: SIZE };
    let used = |index: u16, id: u32| {
        let offset = LAYOUT.used + 4 + 8 * u64::from(index);
        world.mem.write(RegionId(0), offset, &U32::new(id)).unwrap();
        hostile.set_used_index(&world.mem, index + 1).unwrap();
    };
    used(0, 0);
    let mut driver = world.driver.clone();
    assert_eq!(driver.reap(&world.mem), Err(Fault::UsedIndexJump { from: 0, to: 1 }));
    let tag = world.driver.add(&world.mem, &RequestSpec::flush()).unwrap();
    for id in [u32::from(SIZE), 0x1_0000, u32::MAX] {
        used(0, id);
        assert_eq!(world.driver.clone().reap(&world.mem), Err(Fault::BadId(id)));
    }
    let other = tag.0 + 1;
    used(0, u32::from(other));
    assert_eq!(world.driver.clone().reap(&world.mem), Err(Fault::NotInFlight(Tag(other))));
    hostile.set_used_index(&world.mem, u16::MAX).unwrap();
    assert_eq!(
        world.driver.clone().reap(&world.mem),
        Err(Fault::UsedIndexJump { from: 0, to: u16::MAX })
    );
    let empty = FlatMemory::new(&[]);
    assert_eq!(world.driver.reap(&empty), Err(Fault::Unmapped));
}

#[test]
fn a_device_that_breaks_a_packed_queue_is_named_and_nothing_panics() {
    let mut world = World::new(false, true);
    let used = |id: u16| {
        let flags = DESC_AVAIL | DESC_USED;
        let descriptor =
            PackedDescriptor { id: id.into(), flags: flags.into(), ..PackedDescriptor::EMPTY };
        world.mem.write(RegionId(0), PACKED.desc, &descriptor).unwrap();
    };
    let tag = world.driver.add(&world.mem, &RequestSpec::flush()).unwrap();
    world.driver.expose(&world.mem);
    for id in [PACKED.size, 0x8000, u16::MAX] {
        used(id);
        assert_eq!(world.driver.clone().reap(&world.mem), Err(Fault::BadId(id.into())));
    }
    used(tag.0 + 1);
    assert_eq!(world.driver.clone().reap(&world.mem), Err(Fault::NotInFlight(Tag(tag.0 + 1))));
    let empty = FlatMemory::new(&[]);
    assert_eq!(world.driver.reap(&empty), Err(Fault::Unmapped));
}
