//! What a logic analyser on the memory bus would say of legal guests' rings.
//!
//! It sees every access of the device and every store of the drivers, knows the virtio rules
//! itself, and grants and revokes the rights on which all of the device's accesses are checked.
//! Nothing here is shared with the core but the layout of a ring.

pub mod ram;
mod judge;
mod kill;
pub mod decode;
pub mod memory;
pub mod parts;

use std::collections::{BTreeMap, BTreeSet};

use sluice_core::virtqueue::layout::{
    AVAIL_IDX, AVAIL_NO_INTERRUPT, AVAIL_RING, USED_IDX, USED_RING, avail_event_offset,
    used_event_offset,
};

use crate::log::{Violation, Who};
use decode::{Disk, Live, decode};
use judge::judge;
use ram::{Extent, ONCE, READ, Ram, WRITE};

/// One ring under observation.
#[derive(Debug)]
pub struct Ring {
    guest: u32,
    size: u16,
    desc: Extent,
    avail: Extent,
    used: Extent,
    event_idx: bool,
    running: bool,
    /// Whether it ran when the device was killed, and has not been started since.
    killed: bool,
    /// Whether the device may take new chains.
    pub enabled: bool,
    /// The driver's index, as the driver last set it, and as the device last loaded it.
    offered: u16,
    acquired: u16,
    /// The next available entry that the device has to take.
    fetched: u16,
    /// The used index that the driver can see.
    returned: u16,
    /// Chains that the driver has made available and not got back, by head.
    pub live: BTreeMap<u16, Live>,
    /// Whether the driver has to be notified.
    owed: bool,
    /// Whether the device knows that there is something to fetch, and how many chains of other
    /// rings it has taken since.
    ready: bool,
    overtaken: u32,
}

impl Ring {
    /// Whether chains wait that the device has not taken.
    #[must_use]
    pub const fn has_waiting(&self) -> bool {
        self.offered != self.fetched
    }

    fn slot(&self, base: u64, entry_bytes: u64, index: u16) -> u64 {
        base + entry_bytes * u64::from(index & (self.size - 1))
    }
}

fn at(extent: Extent, offset: u64, len: usize) -> Extent {
    extent.part(usize::try_from(offset).unwrap_or(usize::MAX), len)
}

/// All rings of legal guests, by guest and queue.
#[derive(Debug, Default)]
pub struct Bus {
    /// The rings.
    pub rings: BTreeMap<(u32, u16), Ring>,
    /// What each guest's disk promises.
    pub disks: BTreeMap<u32, Disk>,
    /// Images that have seen a sync fail.
    pub poisoned: BTreeSet<u32>,
    /// Chains taken since the last look.
    pub fetches: u32,
    found: Vec<Violation>,
}

impl Bus {
    /// A driver has laid a ring out, empty, at these places.
    pub fn add(&mut self, who: (u32, u16), size: u16, [desc, avail, used]: [Extent; 3]) {
        let ring = Ring {
            guest: who.0,
            size,
            desc,
            avail,
            used,
            event_idx: false,
            running: false,
            killed: false,
            enabled: false,
            offered: 0,
            acquired: 0,
            fetched: 0,
            returned: 0,
            live: BTreeMap::new(),
            owed: false,
            ready: false,
            overtaken: 0,
        };
        self.rings.insert(who, ring);
    }

    /// The device is about to be told that a ring runs, at the place where it was stopped. It
    /// will have to notify its driver.
    //= spec/recovery.md#REC-8
    pub fn start(&mut self, ram: &mut Ram, who: (u32, u16), event_idx: bool, enabled: bool) {
        let Some(ring) = self.rings.get_mut(&who) else { return };
        let size = ring.size;
        (ring.running, ring.enabled, ring.event_idx) = (true, enabled, event_idx);
        ring.acquired = ring.fetched;
        (ring.ready, ring.overtaken, ring.owed) = (true, 0, true);
        ram.grant(at(ring.avail, 0, 4), READ);
        ram.grant(at(ring.avail, used_event_offset(size), 2), READ);
        ram.grant(at(ring.used, 0, 4), WRITE);
        ram.grant(at(ring.used, USED_IDX, 2), ONCE);
        ram.grant(at(ring.used, avail_event_offset(size), 2), WRITE);
        // What was taken before a kill is in no entry of the available ring any more.
        let taken = ring.live.values().filter(|live| live.fetched);
        let mut slot = ring.returned;
        for live in taken {
            expose(ram, ring, slot, live);
            slot = slot.wrapping_add(1);
        }
        let mut waiting = ring.fetched;
        while waiting != ring.offered {
            let head = ram.u16(ring.avail, ring.slot(AVAIL_RING, 2, waiting));
            offer(ram, ring, waiting, slot, head);
            (waiting, slot) = (waiting.wrapping_add(1), slot.wrapping_add(1));
        }
    }

    /// The device has said that a ring no longer runs, and where it stands.
    pub fn stop(&mut self, ram: &mut Ram, who: (u32, u16), base: Option<u16>) {
        let Some(ring) = self.rings.get_mut(&who) else { return };
        let taken: Vec<u16> =
            ring.live.iter().filter(|(_, live)| live.fetched).map(|(&head, _)| head).collect();
        if !taken.is_empty() {
            let what = format!("{who:?} stopped with heads {taken:?} under way");
            self.found.push(Violation { invariant: "I27", what });
        }
        if base.is_some_and(|base| base != ring.fetched) {
            let what = format!("{who:?} stopped at {base:?}, taken up to {}", ring.fetched);
            self.found.push(Violation { invariant: "I03", what });
        }
        silence(ram, ring);
    }

    /// Nothing of a ring is to be touched any more, and its driver forgets it.
    pub fn remove(&mut self, ram: &mut Ram, who: (u32, u16)) {
        if let Some(mut ring) = self.rings.remove(&who) {
            silence(ram, &mut ring);
        }
    }

    /// The driver has stored two bytes, perhaps its index.
    pub fn driver_stored(&mut self, ram: &mut Ram, chunk: usize, spot: usize) {
        let hit = |ring: &&mut Ring| at(ring.avail, AVAIL_IDX, 1).position(chunk, spot).is_some();
        let Some(ring) = self.rings.values_mut().find(hit) else { return };
        let index = ram.u16(ring.avail, AVAIL_IDX);
        let disk = self.disks.get(&ring.guest).copied().unwrap_or_default();
        if ring.offered == ring.fetched && index != ring.offered {
            (ring.ready, ring.overtaken) = (true, 0);
        }
        while ring.offered != index {
            let head = ram.u16(ring.avail, ring.slot(AVAIL_RING, 2, ring.offered));
            let live = decode(ram, ring.guest, ring.desc, head, &disk);
            let outstanding = u16::try_from(ring.live.len()).unwrap_or(u16::MAX);
            let slot = ring.returned.wrapping_add(outstanding);
            assert!(ring.live.insert(head, live).is_none(), "a legal driver reuses no live head");
            if ring.running {
                offer(ram, ring, ring.offered, slot, head);
            }
            ring.offered = ring.offered.wrapping_add(1);
        }
    }

    /// The device loads an index: what it finds it may use.
    pub fn device_acquired(&mut self, chunk: usize, spot: usize, value: u16) {
        for ring in self.rings.values_mut() {
            if at(ring.avail, AVAIL_IDX, 1).position(chunk, spot).is_some() {
                ring.acquired = value;
            }
        }
    }

    /// The device reads two bytes, perhaps an available entry.
    pub fn device_read(&mut self, ram: &Ram, chunk: usize, spot: usize) {
        let who = self.rings.iter().find_map(|(&who, ring)| {
            let entries = at(ring.avail, AVAIL_RING, 2 * usize::from(ring.size));
            entries.position(chunk, spot).map(|position| (who, position))
        });
        let Some((who, position)) = who else { return };
        let others = self.rings.len();
        let Some(ring) = self.rings.get_mut(&who) else { return };
        let found = &mut self.found;
        let mut fault = |invariant, what: String| found.push(Violation { invariant, what });
        if position / 2 != usize::from(ring.fetched & (ring.size - 1)) {
            fault("I03", format!("{who:?} takes entry {} out of turn", position / 2));
        }
        if ring.acquired.wrapping_sub(ring.fetched).wrapping_sub(1) >= ring.size {
            fault("I05", format!("{who:?} takes entry {} before its index", ring.fetched));
        }
        if !ring.enabled {
            fault("I05", format!("{who:?} is disabled and taken from"));
        }
        let head = ram.u16(ring.avail, ring.slot(AVAIL_RING, 2, ring.fetched));
        if let Some(live) = ring.live.get_mut(&head) {
            live.fetched = true;
        }
        ring.fetched = ring.fetched.wrapping_add(1);
        ring.overtaken = 0;
        self.fetches += 1;
        for (other, ring) in &mut self.rings {
            if *other == who || !ring.ready || !ring.enabled || !ring.running {
                continue;
            }
            if !ring.has_waiting() {
                ring.overtaken = 0;
                continue;
            }
            ring.overtaken += 1;
            if ring.overtaken as usize > FAIR_SHARE * others {
                ring.overtaken = 0;
                let what = format!("{other:?} waits while others are served");
                self.found.push(Violation { invariant: "I22", what });
            }
        }
    }

    /// A store of the device has become visible, perhaps its index.
    pub fn device_stored(&mut self, ram: &mut Ram, chunk: usize, spot: usize) {
        let hit = |ring: &Ring| {
            ring.running && at(ring.used, USED_IDX, 1).position(chunk, spot).is_some()
        };
        let Some((&who, ring)) = self.rings.iter_mut().find(|(_, ring)| hit(ring)) else { return };
        let index = ram.u16(ring.used, USED_IDX);
        let count = index.wrapping_sub(ring.returned);
        let old = ring.returned;
        let disk = self.disks.get(&ring.guest).copied().unwrap_or_default();
        for _ in 0..count.min(ring.size) {
            let entry = at(ring.used, ring.slot(USED_RING, 8, ring.returned), 8);
            let bytes = ram.bytes(entry);
            let id = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
            let len = u32::from_le_bytes(bytes[4..].try_into().expect("four bytes"));
            ring.returned = ring.returned.wrapping_add(1);
            ram.revoke(entry);
            let head = u16::try_from(id).ok();
            let taken = head.and_then(|head| ring.live.remove(&head)).filter(|live| live.fetched);
            let Some(live) = taken else {
                let what = format!("{who:?} gives back head {id}, which was not taken");
                self.found.push(Violation { invariant: "I03", what });
                continue;
            };
            if let Err((invariant, what)) =
                judge(ram, &disk, self.poisoned.contains(&disk.image), &live, len)
            {
                let what = format!("{who:?} head {id}: {what}");
                self.found.push(Violation { invariant, what });
            }
            live.grants.iter().for_each(|&(extent, _)| ram.revoke(extent));
        }
        if ring.returned != index {
            let what = format!("{who:?} gives back {count} chains at once");
            self.found.push(Violation { invariant: "I03", what });
            ring.returned = index;
        }
        //= spec/virtqueue.md#VQ-12
        ring.owed |= if ring.event_idx {
            let event = ram.u16(ring.avail, used_event_offset(ring.size));
            (0..count).any(|step| old.wrapping_add(step) == event)
        } else {
            count > 0 && ram.u16(ring.avail, 0) & AVAIL_NO_INTERRUPT == 0
        };
    }

    /// The device has notified a driver.
    pub fn notified(&mut self, who: (u32, u16)) {
        if let Some(ring) = self.rings.get_mut(&who) {
            ring.owed = false;
        }
    }

    /// The device has heard a driver's notification.
    pub fn kicked(&mut self, who: (u32, u16)) {
        if let Some(ring) = self.rings.get_mut(&who) {
            (ring.ready, ring.overtaken) = (true, 0);
        }
    }

    /// The device sleeps: it knows of no work, and hears of work by notifications only.
    pub fn asleep(&mut self) {
        for ring in self.rings.values_mut() {
            ring.ready = false;
        }
    }

    /// The device has sent all notifications: nobody may be waiting for one.
    pub fn all_notified(&mut self) {
        for (who, ring) in &mut self.rings {
            if core::mem::take(&mut ring.owed) {
                let what = format!("{who:?} is not notified of used index {}", ring.returned);
                self.found.push(Violation { invariant: "I15", what });
            }
        }
    }

    /// Notes a violation seen elsewhere.
    pub fn fault(&mut self, invariant: &'static str, what: String) {
        self.found.push(Violation { invariant, what });
    }

    /// Takes what was found out.
    pub fn take_found(&mut self) -> Vec<Violation> {
        core::mem::take(&mut self.found)
    }

    /// Whose ring, and which chain of it, has a payload byte at this place, and how many payload
    /// bytes come before it.
    #[must_use]
    pub fn owner(&self, chunk: usize, spot: usize) -> Option<(Who, u16, u64)> {
        self.rings.iter().find_map(|(&(guest, queue), ring)| {
            ring.live.iter().find_map(|(&head, live)| {
                let mut before = 0;
                for extent in &live.data {
                    if let Some(position) = extent.position(chunk, spot) {
                        let who = Who { guest, queue: Some(queue) };
                        return Some((who, head, before + position as u64));
                    }
                    before += extent.len as u64;
                }
                None
            })
        })
    }
}

/// Chains that may be taken from each of the other rings while one waits: two full turns, for
/// the one that had begun, and the end of the request pool in the middle of another.
const FAIR_SHARE: usize = 3 * sluice_core::limits::QUEUE_BATCH as usize;

/// Lets the device take the chain at an available index, and give it back in a used slot.
fn offer(ram: &mut Ram, ring: &Ring, index: u16, slot: u16, head: u16) {
    ram.grant(at(ring.avail, ring.slot(AVAIL_RING, 2, index), 2), ONCE);
    if let Some(live) = ring.live.get(&head) {
        expose(ram, ring, slot, live);
    }
}

/// Lets the device carry a chain out, and give it back in a used slot.
fn expose(ram: &mut Ram, ring: &Ring, slot: u16, live: &Live) {
    ram.grant(at(ring.used, ring.slot(USED_RING, 8, slot), 8), WRITE);
    live.grants.iter().for_each(|&(extent, right)| ram.grant(extent, right));
}

fn silence(ram: &mut Ram, ring: &mut Ring) {
    ring.running = false;
    ring.owed = false;
    ram.revoke(ring.desc);
    ram.revoke(ring.avail);
    ram.revoke(ring.used);
    for (extent, _) in ring.live.values().flat_map(|live| &live.grants) {
        ram.revoke(*extent);
    }
}
