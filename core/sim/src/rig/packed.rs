//! The rig's packed ring, written by hand.

use std::collections::BTreeMap;

use sluice_core::virtqueue::layout::{DESC_AVAIL, DESC_NEXT, DESC_USED};

use super::{RING, Rig};

/// Where the guest stands in its ring: index and wrap counter, for each direction.
#[derive(Clone, Debug, Default)]
pub(super) struct Hand {
    next: (u16, bool),
    used: (u16, bool),
    /// Descriptors of each chain.
    counts: BTreeMap<u16, u16>,
}

impl Hand {
    pub(super) const fn new(base: u16) -> Self {
        let place = (base & 0x7fff, base & 0x8000 != 0);
        Self { next: place, used: place, counts: BTreeMap::new() }
    }
}

impl Rig<'_> {
    /// The next place: index and wrap counter.
    #[must_use]
    pub const fn next_place(&self) -> (u16, bool) {
        self.hand.next
    }

    /// Flags that make a descriptor available in this lap.
    #[must_use]
    pub const fn lap(wrap: bool) -> u16 {
        if wrap { DESC_AVAIL } else { DESC_USED }
    }

    /// The place so many entries further on.
    #[must_use]
    pub const fn place_after(&self, (index, wrap): (u16, bool), count: u16) -> (u16, bool) {
        let sum = index as u32 + count as u32;
        let (size, laps) = (self.setup.size as u32, sum / self.setup.size as u32);
        #[expect(clippy::cast_possible_truncation, reason = "less than the size")]
        (((sum % size) as u16), wrap ^ (laps % 2 == 1))
    }

    /// Makes a chain of these buffers available, in the next places.
    pub fn offer_row(&mut self, id: u16, buffers: &[(u64, u32, u16)]) {
        self.write_row(id, buffers);
        self.skip_row(id, u16::try_from(buffers.len()).unwrap_or(u16::MAX));
    }

    /// Writes a chain into the next places, without going on.
    pub fn write_row(&self, id: u16, buffers: &[(u64, u32, u16)]) {
        let mut place = self.hand.next;
        for (step, &(addr, len, flags)) in buffers.iter().enumerate() {
            let more = if step + 1 < buffers.len() { DESC_NEXT } else { 0 };
            self.desc(place.0, (addr, len, id, flags | more | Self::lap(place.1)));
            place = self.place_after(place, 1);
        }
    }

    /// Goes on behind a chain of so many entries that was written.
    pub fn skip_row(&mut self, id: u16, count: u16) {
        self.hand.counts.insert(id, count);
        self.hand.next = self.place_after(self.hand.next, count);
    }

    /// Makes a chain available and runs a turn; what came back, as (id, length).
    pub fn run_row(&mut self, id: u16, buffers: &[(u64, u32, u16)]) -> Vec<(u32, u32)> {
        self.offer_row(id, buffers);
        self.turn();
        self.used()
    }

    /// Used descriptors that are new, as (id, length).
    pub(super) fn used_rows(&mut self) -> Vec<(u32, u32)> {
        let mut found = Vec::new();
        while found.len() <= usize::from(self.setup.size) {
            let (index, wrap) = self.hand.used;
            let bytes = self.mem.dump(RING, 16 * u64::from(index), 16);
            let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
            let flags = word(14);
            if (flags & DESC_AVAIL != 0) != wrap || (flags & DESC_USED != 0) != wrap {
                break;
            }
            let len = u32::from(word(8)) | u32::from(word(10)) << 16;
            found.push((word(12).into(), len));
            let count = self.hand.counts.get(&word(12)).copied().unwrap_or(1);
            self.hand.used = self.place_after((index, wrap), count);
        }
        found
    }

    /// Empties the ring and starts over at a base.
    pub(super) fn clear_ring(&mut self) {
        self.hand = Hand::new(self.setup.base);
        let (first, wrap) = self.hand.next;
        for index in 0..self.setup.size {
            // Used in this lap, or in the one before.
            let lap = if index < first { wrap } else { !wrap };
            self.desc(index, (0, 0, 0, if lap { DESC_AVAIL | DESC_USED } else { 0 }));
        }
        self.mem.fill(RING, self.avail(), &[0; 8]);
    }
}
