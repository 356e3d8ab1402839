//! A split ring as the bus sees it: two indices that move.

use sluice_core::virtqueue::layout::{
    AVAIL_IDX, AVAIL_NO_INTERRUPT, AVAIL_RING, USED_IDX, USED_RING, avail_event_offset,
    used_event_offset,
};

use super::decode::Source;
use super::ram::{Extent, ONCE, READ, Ram, WRITE};
use super::{Fault, Frame, Given, at};

/// Where both sides stand.
#[derive(Debug, Default)]
pub(super) struct Split {
    /// The driver's index, as the driver last set it, and as the device last loaded it.
    offered: u16,
    acquired: u16,
    /// The next available entry that the device has to take.
    fetched: u16,
    /// The used index that the driver can see.
    returned: u16,
}

const fn slot(frame: &Frame, base: u64, entry_bytes: u64, index: u16) -> u64 {
    base + entry_bytes * (index & (frame.size - 1)) as u64
}

impl Split {
    /// The ring runs: what stands in it may be taken.
    pub(super) fn start(&mut self, ram: &mut Ram, frame: &Frame, taken: usize) {
        self.acquired = self.fetched;
        ram.grant(at(frame.avail, 0, 4), READ);
        ram.grant(at(frame.avail, used_event_offset(frame.size), 2), READ);
        ram.grant(at(frame.used, 0, 4), WRITE);
        ram.grant(at(frame.used, USED_IDX, 2), ONCE);
        // Whether the last entry was ever written tells a new ring from one that has come round.
        ram.grant(at(frame.used, avail_event_offset(frame.size) - 4, 4), ONCE);
        ram.grant(at(frame.used, avail_event_offset(frame.size), 2), WRITE);
        let mut waiting = self.fetched;
        let mut into = self.returned;
        for _ in 0..taken {
            ram.grant(at(frame.used, slot(frame, USED_RING, 8, into), 8), WRITE);
            into = into.wrapping_add(1);
        }
        while waiting != self.offered {
            expose(ram, frame, waiting, into);
            (waiting, into) = (waiting.wrapping_add(1), into.wrapping_add(1));
        }
    }

    /// The used index that the driver can see.
    pub(super) const fn returned(&self) -> u16 {
        self.returned
    }

    /// A successor goes on with these chains under way.
    pub(super) fn take_over(&mut self, taken: &[u16]) {
        self.fetched = self.returned.wrapping_add(u16::try_from(taken.len()).unwrap_or(0));
    }

    pub(super) const fn base(&self, _: &Frame) -> u32 {
        self.fetched as u32
    }

    pub(super) const fn has_waiting(&self) -> bool {
        self.offered != self.fetched
    }

    /// Whether a store of the driver may have made something available.
    pub(super) fn offers(frame: &Frame, chunk: usize, spot: usize) -> bool {
        at(frame.avail, AVAIL_IDX, 1).position(chunk, spot).is_some()
    }

    /// The next chain that the driver has made available: its name, and how to read it.
    pub(super) fn next_offer(&self, ram: &Ram, frame: &Frame) -> Option<(u16, Source)> {
        let head = ram.u16(frame.avail, slot(frame, AVAIL_RING, 2, self.offered));
        let more = ram.u16(frame.avail, AVAIL_IDX) != self.offered;
        more.then_some((head, Source::Split { table: frame.desc, head }))
    }

    /// Goes on behind that chain, the `under_way`-th that has not come back.
    pub(super) fn offer(&mut self, ram: &mut Ram, frame: &Frame, running: bool, under_way: usize) {
        let into = self.returned.wrapping_add(u16::try_from(under_way).unwrap_or(u16::MAX));
        if running {
            expose(ram, frame, self.offered, into);
        }
        self.offered = self.offered.wrapping_add(1);
    }

    /// The device loads two bytes with acquire: what it finds it may use.
    pub(super) fn acquire(&mut self, frame: &Frame, from: Extent, value: u16) {
        if from == at(frame.avail, AVAIL_IDX, 2) {
            self.acquired = value;
        }
    }

    /// Whether reading this takes something from the ring.
    pub(super) fn takes(frame: &Frame, from: Extent) -> bool {
        let entries = at(frame.avail, AVAIL_RING, 2 * usize::from(frame.size));
        from.len == 2 && entries.position(from.chunk, from.at).is_some()
    }

    /// The device reads an available entry. Says which chain it has taken.
    pub(super) fn fetch(
        &mut self,
        ram: &mut Ram,
        frame: &Frame,
        from: Extent,
        faults: &mut Vec<Fault>,
    ) -> Option<u16> {
        let entry = slot(frame, AVAIL_RING, 2, self.fetched);
        if from != at(frame.avail, entry, 2) {
            faults.push(("I03", format!("takes {from:?} out of turn")));
        }
        if self.acquired.wrapping_sub(self.fetched).wrapping_sub(1) >= frame.size {
            faults.push(("I05", format!("takes entry {} before its index", self.fetched)));
        }
        self.fetched = self.fetched.wrapping_add(1);
        Some(ram.u16(frame.avail, entry))
    }

    /// Whether a store of the device may have given something back.
    pub(super) fn gives(frame: &Frame, to: Extent) -> bool {
        to == at(frame.used, USED_IDX, 2)
    }

    /// What the driver can see now that it could not before, and whether it wants to be told.
    pub(super) fn give_back(
        &mut self,
        ram: &mut Ram,
        frame: &Frame,
        faults: &mut Vec<Fault>,
    ) -> (Vec<Given>, bool) {
        let index = ram.u16(frame.used, USED_IDX);
        let old = self.returned;
        let count = index.wrapping_sub(old);
        let mut given = Vec::new();
        for step in 0..count.min(frame.size) {
            let entry = slot(frame, USED_RING, 8, old.wrapping_add(step));
            let entry = at(frame.used, entry, 8);
            let bytes = ram.bytes(entry);
            let id = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
            let len = u32::from_le_bytes(bytes[4..].try_into().expect("four bytes"));
            given.push(Given { id, len });
            ram.revoke(entry);
        }
        if count > frame.size {
            faults.push(("I03", format!("gives back {count} chains at once")));
        }
        self.returned = index;
        let wanted = if frame.event_idx {
            let event = ram.u16(frame.avail, used_event_offset(frame.size));
            (0..count).any(|step| old.wrapping_add(step) == event)
        } else {
            count > 0 && ram.u16(frame.avail, 0) & AVAIL_NO_INTERRUPT == 0
        };
        (given, wanted)
    }
}

/// Lets the device take the chain at an available index, and give it back in a used slot.
fn expose(ram: &mut Ram, frame: &Frame, index: u16, into: u16) {
    ram.grant(at(frame.avail, slot(frame, AVAIL_RING, 2, index), 2), ONCE);
    ram.grant(at(frame.used, slot(frame, USED_RING, 8, into), 8), WRITE);
}
