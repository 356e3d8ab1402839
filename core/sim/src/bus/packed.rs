//! A packed ring as the bus sees it: descriptors whose flags change sides.
//!
//! Counts entries in its own way, by a number that never wraps.

use std::collections::{BTreeMap, VecDeque};

use sluice_core::virtqueue::layout::{DESC_AVAIL, DESC_USED, DESC_WRITE};

use super::decode::Source;
use super::ram::{Extent, ONCE, READ, Ram, WRITE};
use super::{Fault, Frame, Given, at};

/// Where both sides stand, in entries since the ring began.
#[derive(Debug, Default)]
pub(super) struct Packed {
    /// Behind what the driver has made available.
    offered: u64,
    /// The last entry whose flags the device has loaded and found available.
    acquired: Option<u64>,
    /// Behind the last chain that the device has begun to take, and behind the last descriptor
    /// of it that it has copied.
    fetched: u64,
    copied: u64,
    /// Behind what the driver can see is used.
    returned: u64,
    /// Chains that wait to be taken, by id, and those that were, in that order.
    waiting: VecDeque<u16>,
    taken: Vec<u16>,
    /// How many entries each chain has.
    entries: BTreeMap<u16, u16>,
}

/// Offset of an entry.
fn entry(frame: &Frame, number: u64) -> u64 {
    16 * (number % u64::from(frame.size))
}

/// The wrap counter of an entry.
const fn wrap(frame: &Frame, number: u64) -> bool {
    (number / frame.size as u64).is_multiple_of(2)
}

/// Index and wrap counter as they travel.
fn bits(frame: &Frame, number: u64) -> u32 {
    let index = u32::try_from(number % u64::from(frame.size)).unwrap_or(0);
    index | u32::from(wrap(frame, number)) << 15
}

/// Whether an entry's flags show it to one side: `used` like `avail`, or unlike.
fn shows(ram: &Ram, frame: &Frame, number: u64, used: bool) -> bool {
    let flags = ram.u16(frame.desc, entry(frame, number) + 14);
    let expected = wrap(frame, number);
    (flags & DESC_AVAIL != 0) == expected && (flags & DESC_USED != 0) == (expected == used)
}

impl Packed {
    /// The ring runs: what stands in it may be taken.
    pub(super) fn start(&mut self, ram: &mut Ram, frame: &Frame, _taken: usize) {
        self.acquired = None;
        for number in 0..u64::from(frame.size) {
            ram.grant(at(frame.desc, 16 * number + 14, 2), READ);
        }
        ram.grant(at(frame.avail, 0, 4), READ);
        ram.grant(at(frame.used, 0, 4), WRITE);
        (self.returned..self.fetched).for_each(|number| yield_entry(ram, frame, number));
        (self.fetched..self.offered).for_each(|number| expose(ram, frame, number));
    }

    /// A successor goes on with these chains under way; what else was taken waits again.
    pub(super) fn take_over(&mut self, taken: &[u16]) {
        let (kept, lost) = self.taken.iter().partition(|id| taken.contains(id));
        let (kept, lost): (Vec<u16>, Vec<u16>) = (kept, lost);
        lost.into_iter().rev().for_each(|id| self.waiting.push_front(id));
        let entries = kept.iter().filter_map(|id| self.entries.get(id));
        self.fetched = self.returned + entries.map(|&count| u64::from(count)).sum::<u64>();
        (self.copied, self.taken) = (self.fetched, kept);
    }

    pub(super) fn base(&self, frame: &Frame) -> u32 {
        bits(frame, self.fetched) | bits(frame, self.returned) << 16
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether a store of the driver may have made something available.
    pub(super) fn offers(frame: &Frame, chunk: usize, spot: usize) -> bool {
        frame.desc.position(chunk, spot).is_some_and(|position| position % 16 == 14)
    }

    /// The next chain that the driver has made available: its id, and how to read it.
    pub(super) fn next_offer(&self, ram: &Ram, frame: &Frame) -> Option<(u16, Source)> {
        if self.offered - self.returned == frame.size.into()
            || !shows(ram, frame, self.offered, false)
        {
            return None;
        }
        let mut last = self.offered;
        while ram.u16(frame.desc, entry(frame, last) + 14) & 1 != 0 {
            last += 1;
        }
        let row = (self.offered..=last).map(|number| at(frame.desc, entry(frame, number), 16));
        let id = ram.u16(frame.desc, entry(frame, last) + 12);
        Some((id, Source::Packed(row.collect())))
    }

    /// Goes on behind that chain.
    pub(super) fn offer(
        &mut self,
        ram: &mut Ram,
        frame: &Frame,
        running: bool,
        id: u16,
        source: &Source,
    ) {
        let Source::Packed(row) = source else { return };
        for _ in row {
            if running {
                expose(ram, frame, self.offered);
            }
            self.offered += 1;
        }
        self.waiting.push_back(id);
        self.entries.insert(id, u16::try_from(row.len()).unwrap_or(u16::MAX));
    }

    /// The device loads two bytes with acquire: what it finds it may use.
    pub(super) fn acquire(&mut self, ram: &Ram, frame: &Frame, from: Extent) {
        let next = self.fetched;
        if from == at(frame.desc, entry(frame, next) + 14, 2) && shows(ram, frame, next, false) {
            self.acquired = Some(next);
        }
    }

    /// Whether reading this takes something from the ring.
    pub(super) fn takes(frame: &Frame, from: Extent) -> bool {
        from.len == 16 && frame.desc.position(from.chunk, from.at).is_some()
    }

    /// The device copies a descriptor. Says which chain it has begun to take.
    pub(super) fn fetch(
        &mut self,
        ram: &mut Ram,
        frame: &Frame,
        from: Extent,
        faults: &mut Vec<Fault>,
    ) -> Option<u16> {
        if from != at(frame.desc, entry(frame, self.copied), 16) {
            faults.push(("I03", format!("takes {from:?} out of turn")));
        }
        let begins = self.copied == self.fetched;
        self.copied += 1;
        if !begins {
            return None;
        }
        if self.acquired != Some(self.fetched) {
            faults.push(("I05", format!("takes entry {} before its flags", self.fetched)));
        }
        let id = self.waiting.pop_front()?;
        // From now on the chain's entries are the device's to fill.
        for _ in 0..self.entries.get(&id).copied().unwrap_or(0) {
            yield_entry(ram, frame, self.fetched);
            self.fetched += 1;
        }
        self.taken.push(id);
        Some(id)
    }

    /// Whether a store of the device may have given something back.
    pub(super) fn gives(frame: &Frame, to: Extent) -> bool {
        frame.desc.position(to.chunk, to.at).is_some()
    }

    /// What the driver can see now that it could not before, and whether it wants to be told.
    pub(super) fn give_back(
        &mut self,
        ram: &mut Ram,
        frame: &Frame,
        faults: &mut Vec<Fault>,
    ) -> (Vec<Given>, bool) {
        let (mut given, old) = (Vec::new(), self.returned);
        while self.returned < self.fetched && shows(ram, frame, self.returned, true) {
            let used = ram.bytes(at(frame.desc, entry(frame, self.returned), 16));
            let len = u32::from_le_bytes(used[8..12].try_into().expect("four bytes"));
            let id = u16::from_le_bytes([used[12], used[13]]);
            let writes = u16::from_le_bytes([used[14], used[15]]) & DESC_WRITE != 0;
            if writes != (len > 0) {
                faults.push(("I04", format!("id {id} with length {len} has WRITE {writes}")));
            }
            given.push(Given { id: id.into(), len });
            self.taken.retain(|&taken| taken != id);
            for _ in 0..self.entries.remove(&id).unwrap_or(1) {
                let entry = entry(frame, self.returned);
                ram.revoke(at(frame.desc, entry, 16));
                ram.grant(at(frame.desc, entry + 14, 2), READ);
                self.returned += 1;
            }
        }
        let passed = old..self.returned;
        let wanted = match ram.u16(frame.avail, 2) {
            1 => false,
            2 if frame.event_idx => {
                let event = u32::from(ram.u16(frame.avail, 0));
                passed.clone().any(|number| bits(frame, number) == event)
            }
            _ => !passed.is_empty(),
        };
        (given, wanted)
    }
}

/// Lets the device give something back in an entry.
fn yield_entry(ram: &mut Ram, frame: &Frame, number: u64) {
    ram.grant(at(frame.desc, entry(frame, number) + 8, 8), WRITE);
}

/// Lets the device copy a descriptor.
fn expose(ram: &mut Ram, frame: &Frame, number: u64) {
    ram.grant(at(frame.desc, entry(frame, number), 14), ONCE);
}
