//! Guest memory: the one trait of the core, and the table that checks guest addresses.
//!
//! Memory that a guest writes at the same time is never a Rust reference. It is copied by value
//! through [`SharedMemory`], or handed to the shell as a range. Everything that is read from it
//! is read once and believed only after the copy has been checked.

#[cfg(test)]
pub(crate) mod flat;

use heapless::Vec;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::limits::{REGIONS_LIVE_MAX, REGIONS_MAX};
use crate::planted::{Fault, planted};

/// A mapped piece of shared memory, numbered by the shell.
///
/// The number stays taken until [`Effect::Unmap`](crate::shard::Effect::Unmap) gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RegionId(pub u32);

/// An access outside a mapped region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct OutOfRegion;

/// Access to memory that other parties write at the same time.
///
/// Addresses are (region, offset). An implementation checks bounds itself and answers
/// [`OutOfRegion`]; it never trusts the core's checks, because the trait is safe to call.
/// Plain reads and writes may tear against the other party; the 16-bit index operations
/// may not. All stores are made in the order of the calls: whoever looks after this process was
/// killed finds the effects of the first so many of them.
pub trait SharedMemory {
    /// Copies a value out. Any byte pattern may come back.
    ///
    /// # Errors
    /// [`OutOfRegion`] when the value does not lie wholly inside a mapped region.
    fn read<T: FromBytes + IntoBytes>(
        &self,
        region: RegionId,
        offset: u64,
    ) -> Result<T, OutOfRegion>;

    /// Copies a value in.
    ///
    /// # Errors
    /// [`OutOfRegion`] when the value does not lie wholly inside a mapped region.
    fn write<T: IntoBytes + Immutable>(
        &self,
        region: RegionId,
        offset: u64,
        value: &T,
    ) -> Result<(), OutOfRegion>;

    /// Loads a little-endian index; no later access moves before it.
    ///
    /// # Errors
    /// [`OutOfRegion`] as for [`read`](Self::read), or when `offset` is odd.
    fn load_acquire_u16(&self, region: RegionId, offset: u64) -> Result<u16, OutOfRegion>;

    /// Stores a little-endian index; no earlier access moves behind it.
    ///
    /// # Errors
    /// [`OutOfRegion`] as for [`write`](Self::write), or when `offset` is odd.
    fn store_release_u16(
        &self,
        region: RegionId,
        offset: u64,
        value: u16,
    ) -> Result<(), OutOfRegion>;

    /// Sets bits of a byte in which others set and clear bits at the same time: none of theirs
    /// is lost, and no earlier store moves behind it.
    ///
    /// # Errors
    /// [`OutOfRegion`] as for [`read`](Self::read).
    fn set_bits(&self, region: RegionId, offset: u64, bits: u8) -> Result<(), OutOfRegion>;

    /// Orders all earlier accesses before all later ones, stores before loads included.
    fn full_fence(&self);

    /// Hints that the line at this place will be read soon. Wrong places are ignored.
    #[inline]
    fn prefetch(&self, region: RegionId, offset: u64) {
        let _ = (region, offset);
    }

    /// Hints that the line at this place will be written soon. Wrong places are ignored.
    #[inline]
    fn prefetch_write(&self, region: RegionId, offset: u64) {
        let _ = (region, offset);
    }

    /// Hints that the line at this place, which was just written, will be read by the other side
    /// next. Wrong places are ignored.
    #[inline]
    fn hand_over(&self, region: RegionId, offset: u64) {
        let _ = (region, offset);
    }
}

/// A contiguous piece of one region.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable,
)]
#[repr(C)]
pub struct Segment {
    /// First byte, counted from the start of the region.
    pub offset: u64,
    region: u32,
    /// Bytes.
    pub len: u32,
}

impl Segment {
    /// A segment that holds nothing.
    pub const EMPTY: Self = Self { offset: 0, region: 0, len: 0 };

    /// The piece of `len` bytes at `offset` of `region`.
    #[must_use]
    pub const fn new(region: RegionId, offset: u64, len: u32) -> Self {
        Self { offset, region: region.0, len }
    }

    /// The region it lies in.
    #[must_use]
    pub const fn region(&self) -> RegionId {
        RegionId(self.region)
    }
}

/// A region as a front end describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Region {
    /// The shell's mapping of it.
    pub id: RegionId,
    /// Guest-physical address of its first byte: descriptors use these.
    pub guest: u64,
    /// Front-end user address of its first byte: ring addresses use these.
    pub user: u64,
    /// Bytes.
    pub size: u64,
}

/// Why a memory table was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum MapFault {
    /// A region of no bytes, or one whose end wraps around the address space.
    BadRange,
    /// Two regions share guest or user addresses.
    Overlap,
    /// More regions than `limits::REGIONS_LIVE_MAX`, or too many old ones still in use.
    Full,
    /// No region with this base and size.
    Unknown,
}

/// The regions that one request touches, so that none is unmapped under it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionSet(u64);

/// Where a guest address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What is contiguous from there on, at most what was asked for.
    pub segment: Segment,
    /// The region, as a member for a request's [`RegionSet`].
    pub region: RegionSet,
}

impl RegionSet {
    /// No region.
    pub const EMPTY: Self = Self(0);

    /// Both sets' members.
    #[must_use]
    #[inline]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn contains(self, index: usize) -> bool {
        self.0 >> index & 1 == 1
    }
}

/// What keeps a place of the table from being used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    Free,
    Live,
    /// No longer in the table; unmapped when the last request lets go of it.
    Retired,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    id: RegionId,
    hold: Hold,
    /// Its first guest address; none for what is no guest memory.
    guest: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Live {
    region: Region,
    index: u8,
    set: RegionSet,
}

/// The memory of one front end: every guest address passes through here exactly once.
///
/// A region that leaves the table is retired at once for new requests and given back for unmapping
/// when no request touches it any more.
//= spec/lifecycle.md#LIF-9
#[derive(Debug)]
pub struct MemoryMap {
    live: Vec<Live, REGIONS_LIVE_MAX>,
    entries: [Entry; REGIONS_MAX],
    /// Entries that are retired.
    retired: u32,
}

impl MemoryMap {
    /// A table without regions.
    #[must_use]
    pub const fn new() -> Self {
        const FREE: Entry = Entry { id: RegionId(0), hold: Hold::Free, guest: None };
        Self { live: Vec::new(), entries: [FREE; REGIONS_MAX], retired: 0 }
    }

    /// Adds one region.
    ///
    /// # Errors
    /// [`MapFault`]; the table is as it was.
    pub fn add(&mut self, region: Region) -> Result<(), MapFault> {
        check_range(&region)?;
        if self.live.iter().any(|other| overlap(&other.region, &region)) {
            return Err(MapFault::Overlap);
        }
        let index = self.entries.iter().position(|e| e.hold == Hold::Free).ok_or(MapFault::Full)?;
        let short = u8::try_from(index).map_err(|_| MapFault::Full)?;
        let live = Live { region, index: short, set: RegionSet(1 << short) };
        self.live.push(live).map_err(|_| MapFault::Full)?;
        let guest = Some(region.guest);
        self.entries[index] = Entry { id: region.id, hold: Hold::Live, guest };
        Ok(())
    }

    /// Retires the region with exactly this base and size.
    ///
    /// # Errors
    /// [`MapFault::Unknown`] when there is none.
    pub fn remove(&mut self, guest: u64, user: u64, size: u64) -> Result<RegionId, MapFault> {
        let found = self
            .live
            .iter()
            .position(|l| (l.region.guest, l.region.user, l.region.size) == (guest, user, size))
            .ok_or(MapFault::Unknown)?;
        let live = self.live.remove(found);
        self.retire(live.index.into());
        Ok(live.region.id)
    }

    /// Puts another table in force, all of it or nothing.
    ///
    /// # Errors
    /// [`MapFault`]; the table is as it was.
    pub fn replace(&mut self, regions: &[Region]) -> Result<(), MapFault> {
        for (i, region) in regions.iter().enumerate() {
            check_range(region)?;
            if regions[..i].iter().any(|other| overlap(other, region)) {
                return Err(MapFault::Overlap);
            }
        }
        let free = self.entries.iter().filter(|e| e.hold == Hold::Free).count();
        if regions.len() > REGIONS_LIVE_MAX || regions.len() > free {
            return Err(MapFault::Full);
        }
        self.clear();
        for &region in regions {
            self.add(region)?;
        }
        Ok(())
    }

    /// Keeps a mapping that holds no guest memory (an inflight region) until it is retired.
    ///
    /// # Errors
    /// [`MapFault::Full`].
    pub fn adopt(&mut self, id: RegionId) -> Result<(), MapFault> {
        let free = self.entries.iter_mut().find(|e| e.hold == Hold::Free);
        *free.ok_or(MapFault::Full)? = Entry { id, hold: Hold::Live, guest: None };
        Ok(())
    }

    /// Retires an adopted mapping.
    pub fn disown(&mut self, id: RegionId) {
        let found = self.entries.iter().position(|e| e.hold == Hold::Live && e.id == id);
        if let Some(index) = found {
            self.retire(index);
        }
    }

    /// Retires all regions.
    pub fn clear(&mut self) {
        while let Some(live) = self.live.pop() {
            self.retire(live.index.into());
        }
    }

    fn retire(&mut self, index: usize) {
        self.entries[index].hold = Hold::Retired;
        self.retired += 1;
    }

    /// Gives out a retired region that is not `in_use` any more, once.
    pub fn take_unused(&mut self, in_use: RegionSet) -> Option<RegionId> {
        let unused = |(index, entry): &(usize, &mut Entry)| {
            entry.hold == Hold::Retired && !in_use.contains(*index)
        };
        let (_, entry) = self.entries.iter_mut().enumerate().find(unused)?;
        entry.hold = Hold::Free;
        self.retired -= 1;
        Some(entry.id)
    }

    /// Whether a region has left the table and has not been given out.
    #[must_use]
    #[inline]
    pub const fn has_retired(&self) -> bool {
        self.retired != 0
    }

    /// The regions in force.
    pub fn regions(&self) -> impl ExactSizeIterator<Item = &Region> + Clone {
        self.live.iter().map(|l| &l.region)
    }

    /// Whether the shell's region `id` is in the table, retired or not.
    #[must_use]
    pub fn contains(&self, id: RegionId) -> bool {
        self.entries.iter().any(|e| e.hold != Hold::Free && e.id == id)
    }

    /// The guest address of a place in a region, in force or retired.
    pub(crate) fn guest_address(&self, region: RegionId, offset: u64) -> Option<u64> {
        let entry = self.entries.iter().find(|e| e.hold != Hold::Free && e.id == region)?;
        if entry.hold == Hold::Retired && planted(Fault::RetiredUnlogged) {
            return None;
        }
        entry.guest?.checked_add(offset)
    }

    /// Finds what is contiguous at a guest address: `len` bytes, or fewer at a region's end.
    ///
    /// `None` when the first byte lies in no region.
    //= spec/virtqueue.md#VQ-9
    #[must_use]
    #[inline]
    pub fn translate(&self, guest: u64, len: u32) -> Option<Place> {
        for live in &self.live {
            let offset = guest.wrapping_sub(live.region.guest);
            if offset < live.region.size {
                let rest = live.region.size - offset;
                #[expect(clippy::cast_possible_truncation, reason = "less than a 32-bit number")]
                let len = if rest < u64::from(len) { rest as u32 } else { len };
                let segment = Segment::new(live.region.id, offset, len);
                return Some(Place { segment, region: live.set });
            }
        }
        None
    }
}

/// Finds a ring part at a front-end user address; it has to lie inside one region.
#[must_use]
pub fn find_user<'r>(
    mut regions: impl Iterator<Item = &'r Region>,
    user: u64,
    len: u64,
) -> Option<(RegionId, u64)> {
    regions.find_map(|region| {
        let offset = user.checked_sub(region.user)?;
        let end = offset.checked_add(len)?;
        (end <= region.size).then_some((region.id, offset))
    })
}

impl Default for MemoryMap {
    fn default() -> Self {
        Self::new()
    }
}

fn check_range(region: &Region) -> Result<(), MapFault> {
    let last = region.size.checked_sub(1).ok_or(MapFault::BadRange)?;
    region.guest.checked_add(last).ok_or(MapFault::BadRange)?;
    region.user.checked_add(last).ok_or(MapFault::BadRange)?;
    Ok(())
}

fn overlap(a: &Region, b: &Region) -> bool {
    let meet = |x: u64, y: u64| x <= y + (b.size - 1) && y <= x + (a.size - 1);
    meet(a.guest, b.guest) || meet(a.user, b.user)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(id: u32, guest: u64, user: u64, size: u64) -> Region {
        Region { id: RegionId(id), guest, user, size }
    }

    //= spec/lifecycle.md#LIF-8
    #[test]
    fn b33_b34_b36_a_bad_table_is_refused_whole() {
        let mut map = MemoryMap::new();
        map.replace(&[region(1, 0x1000, 0x9000, 0x1000)]).unwrap();
        let cases = [
            (region(2, 0x5000, 0x5000, 0), MapFault::BadRange),
            (region(2, u64::MAX, 0x5000, 2), MapFault::BadRange),
            (region(2, 0x5000, u64::MAX - 1, 3), MapFault::BadRange),
            (region(2, 0x1fff, 0x5000, 1), MapFault::Overlap),
            (region(2, 0x5000, 0x8fff, 2), MapFault::Overlap),
            (region(2, 0, 0x100_0000, 0x10_0000), MapFault::Overlap),
        ];
        for (bad, fault) in cases {
            assert_eq!(map.add(bad), Err(fault));
            let good = region(3, 0x1000, 0x9000, 0x1000);
            assert_eq!(map.replace(&[good, bad]), Err(fault), "nothing of it comes in force");
            assert_eq!(map.regions().map(|r| r.id).collect::<std::vec::Vec<_>>(), [RegionId(1)]);
        }
        // The last byte of the address space and neighbours that touch are legal.
        map.add(region(2, u64::MAX, 0x5000, 1)).unwrap();
        map.add(region(3, 0x2000, 0xa000, 0x1000)).unwrap();
        let many: std::vec::Vec<_> =
            (0..33).map(|i| region(i, u64::from(i) << 12, u64::from(i) << 12, 0x1000)).collect();
        assert_eq!(map.replace(&many), Err(MapFault::Full));
        map.replace(&many[..32]).unwrap();
    }

    //= spec/virtqueue.md#VQ-9
    #[test]
    fn b37_translation_stops_at_the_end_of_a_region() {
        let mut map = MemoryMap::new();
        map.add(region(7, 0x3000, 0x3000, 0x1000)).unwrap();
        map.add(region(8, 0x2000, 0x8000, 0x1000)).unwrap();
        let place = map.translate(0x2ff0, 0x20).unwrap();
        assert_eq!(place.segment, Segment::new(RegionId(8), 0xff0, 0x10));
        let place = map.translate(0x3fff, 1).unwrap();
        assert_eq!(place.segment, Segment::new(RegionId(7), 0xfff, 1));
        assert_eq!(map.translate(0x4000, 1), None);
        assert_eq!(map.translate(0x1fff, 8), None);
        assert_eq!(map.translate(u64::MAX, 8), None);
        map.add(region(9, u64::MAX - 0xfff, 0x20_0000, 0x1000)).unwrap();
        let place = map.translate(u64::MAX - 7, 9).unwrap();
        assert_eq!(place.segment, Segment::new(RegionId(9), 0xff8, 8), "up to the last address");
        assert_eq!(find_user(map.regions(), 0x8ff0, 0x10), Some((RegionId(8), 0xff0)));
        assert_eq!(find_user(map.regions(), 0x8ff0, 0x11), None);
        assert_eq!(find_user(map.regions(), 0x8ff0, u64::MAX), None);
    }

    //= spec/lifecycle.md#LIF-9
    #[test]
    fn b40_a_retired_region_waits_for_its_last_user() {
        let mut map = MemoryMap::new();
        map.add(region(1, 0, 0, 0x1000)).unwrap();
        let held = map.translate(0, 1).unwrap().region;
        assert_eq!(map.remove(0, 0, 0x2000), Err(MapFault::Unknown));
        assert_eq!(map.remove(0, 0, 0x1000), Ok(RegionId(1)));
        assert_eq!(map.translate(0, 1), None, "new requests do not see it");
        assert!(map.has_retired());
        assert_eq!(map.take_unused(held), None);
        map.add(region(2, 0, 0, 0x1000)).unwrap();
        assert_eq!(map.take_unused(RegionSet::EMPTY), Some(RegionId(1)));
        assert_eq!(map.take_unused(RegionSet::EMPTY), None, "given out once");
        assert!(!map.has_retired());
    }
}
