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
mod split;
mod packed;

use std::collections::{BTreeMap, BTreeSet};

use crate::driver::Layout;
use crate::either::either;
use crate::log::{Violation, Who};
use decode::{Disk, Live, Source, decode};
use judge::judge;
use packed::Packed;
use ram::{Extent, Ram};
use split::Split;

/// What stays the same of a ring.
#[derive(Clone, Copy, Debug)]
struct Frame {
    guest: u32,
    size: u16,
    desc: Extent,
    avail: Extent,
    used: Extent,
    event_idx: bool,
}

/// Where its two sides stand.
#[derive(Debug)]
enum Side {
    Split(Split),
    Packed(Packed),
}

/// An invariant, and how it is broken.
type Fault = (&'static str, String);

/// A chain that the driver has got back.
#[derive(Clone, Copy, Debug)]
struct Given {
    id: u32,
    len: u32,
}

/// One ring under observation.
#[derive(Debug)]
pub struct Ring {
    frame: Frame,
    side: Side,
    running: bool,
    /// Whether the device was killed while it ran, or may have left chains when it stopped, and
    /// it has not been started since.
    left: bool,
    /// Whether the device may take new chains.
    pub enabled: bool,
    /// Chains that the driver has made available and not got back, by head or buffer id.
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
    pub fn has_waiting(&self) -> bool {
        either!(&self.side, side => side.has_waiting())
    }

    fn offers(&self, chunk: usize, spot: usize) -> bool {
        match self.side {
            Side::Split(_) => Split::offers(&self.frame, chunk, spot),
            Side::Packed(_) => Packed::offers(&self.frame, chunk, spot),
        }
    }

    fn takes(&self, from: Extent) -> bool {
        match self.side {
            Side::Split(_) => Split::takes(&self.frame, from),
            Side::Packed(_) => Packed::takes(&self.frame, from),
        }
    }

    fn gives(&self, to: Extent) -> bool {
        match self.side {
            Side::Split(_) => Split::gives(&self.frame, to),
            Side::Packed(_) => Packed::gives(&self.frame, to),
        }
    }

    /// The driver has made a chain available.
    fn offer(&mut self, ram: &mut Ram, name: u16, source: &Source, live: Live) {
        let under_way = self.live.len();
        if self.running {
            grant_chain(ram, &live);
        }
        match &mut self.side {
            Side::Split(side) => side.offer(ram, &self.frame, self.running, under_way),
            Side::Packed(side) => side.offer(ram, &self.frame, self.running, name, source),
        }
        assert!(self.live.insert(name, live).is_none(), "a legal driver reuses no live name");
    }

    fn base(&self) -> u32 {
        either!(&self.side, side => side.base(&self.frame))
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
    pub fn add(&mut self, who: (u32, u16), layout: &Layout, [desc, avail, used]: [Extent; 3]) {
        let frame = Frame { guest: who.0, size: layout.size, desc, avail, used, event_idx: false };
        let side = if layout.packed {
            Side::Packed(Packed::default())
        } else {
            Side::Split(Split::default())
        };
        let ring = Ring {
            frame,
            side,
            running: false,
            left: false,
            enabled: false,
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
        (ring.running, ring.enabled, ring.frame.event_idx) = (true, enabled, event_idx);
        (ring.ready, ring.overtaken, ring.owed) = (true, 0, true);
        // What was taken before a kill is no more among what waits.
        let taken = ring.live.values().filter(|live| live.fetched).count();
        either!(&mut ring.side, side => side.start(ram, &ring.frame, taken));
        ring.live.values().for_each(|live| grant_chain(ram, live));
    }

    /// The device has said that a ring no longer runs, and where it stands. Chains that it has
    /// taken are left only where that was agreed on. Says which.
    //= spec/lifecycle.md#LIF-17
    pub fn stop(&mut self, ram: &mut Ram, who: (u32, u16), base: u32, leaves: bool) -> Vec<u16> {
        let Some(ring) = self.rings.get_mut(&who) else { return Vec::new() };
        let taken: Vec<u16> =
            ring.live.iter().filter(|(_, live)| live.fetched).map(|(&head, _)| head).collect();
        if leaves {
            ring.left = true;
        } else if !taken.is_empty() {
            let what = format!("{who:?} stopped with heads {taken:?} under way");
            self.found.push(Violation { invariant: "I27", what });
        }
        if base != ring.base() {
            let what = format!("{who:?} stopped at {base:#x} instead of {:#x}", ring.base());
            self.found.push(Violation { invariant: "I03", what });
        }
        silence(ram, ring);
        taken
    }

    /// Nothing of a ring is to be touched any more, and its driver forgets it.
    pub fn remove(&mut self, ram: &mut Ram, who: (u32, u16)) {
        if let Some(mut ring) = self.rings.remove(&who) {
            silence(ram, &mut ring);
        }
    }

    /// The driver has stored two bytes, perhaps those that make chains available.
    pub fn driver_stored(&mut self, ram: &mut Ram, chunk: usize, spot: usize) {
        let hit = |ring: &&mut Ring| ring.offers(chunk, spot);
        let Some(ring) = self.rings.values_mut().find(hit) else { return };
        let disk = self.disks.get(&ring.frame.guest).copied().unwrap_or_default();
        let waited = ring.has_waiting();
        loop {
            let offer = either!(&ring.side, side => side.next_offer(ram, &ring.frame));
            let Some((name, source)) = offer else { break };
            let live = decode(ram, ring.frame.guest, &source, &disk);
            ring.offer(ram, name, &source, live);
        }
        if !waited && ring.has_waiting() {
            (ring.ready, ring.overtaken) = (true, 0);
        }
    }

    /// The device loads two bytes with acquire: what it finds it may use.
    pub fn device_acquired(&mut self, ram: &Ram, from: Extent, value: u16) {
        for ring in self.rings.values_mut() {
            match &mut ring.side {
                Side::Split(side) => side.acquire(&ring.frame, from, value),
                Side::Packed(side) => side.acquire(ram, &ring.frame, from),
            }
        }
    }

    /// The device reads, perhaps to take a chain.
    pub fn device_read(&mut self, ram: &mut Ram, from: Extent) {
        let Some(who) = self.rings.iter().find_map(|(&who, ring)| ring.takes(from).then_some(who))
        else {
            return;
        };
        let others = self.rings.len();
        let Some(ring) = self.rings.get_mut(&who) else { return };
        let mut faults = Vec::new();
        let fetched = either!(
            &mut ring.side,
            side => side.fetch(ram, &ring.frame, from, &mut faults)
        );
        if !ring.enabled {
            faults.push(("I05", String::from("is disabled and taken from")));
        }
        self.found.extend(name_faults(who, faults));
        let Some(name) = fetched else { return };
        if let Some(live) = ring.live.get_mut(&name) {
            live.fetched = true;
        }
        ring.overtaken = 0;
        self.fetches += 1;
        // A device whose own chains are under way may hold its share of places already.
        let holding = |ring: &Ring| ring.live.values().any(|live| live.fetched);
        let held: BTreeSet<u32> =
            self.rings.iter().filter(|(_, ring)| holding(ring)).map(|(who, _)| who.0).collect();
        for (other, ring) in &mut self.rings {
            if *other == who || !ring.ready || !ring.enabled || !ring.running {
                continue;
            }
            if held.contains(&other.0) {
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

    /// A store of the device has become visible, perhaps one that gives chains back.
    pub fn device_stored(&mut self, ram: &mut Ram, to: Extent) {
        let hit = |ring: &Ring| ring.running && ring.gives(to);
        let Some((&who, ring)) = self.rings.iter_mut().find(|(_, ring)| hit(ring)) else { return };
        let disk = self.disks.get(&ring.frame.guest).copied().unwrap_or_default();
        let mut faults = Vec::new();
        let (given, wanted) =
            either!(&mut ring.side, side => side.give_back(ram, &ring.frame, &mut faults));
        for Given { id, len } in given {
            let head = u16::try_from(id).ok();
            let taken = head.and_then(|head| ring.live.remove(&head)).filter(|live| live.fetched);
            let Some(live) = taken else {
                faults.push(("I03", format!("gives back head {id}, which was not taken")));
                continue;
            };
            if let Err((invariant, what)) =
                judge(ram, &disk, self.poisoned.contains(&disk.image), &live, len)
            {
                faults.push((invariant, format!("head {id}: {what}")));
            }
            live.grants.iter().for_each(|&(extent, _)| ram.revoke(extent));
        }
        //= spec/virtqueue.md#VQ-12
        //= spec/packed.md#PVQ-10
        ring.owed |= wanted;
        self.found.extend(name_faults(who, faults));
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
                let what = format!("{who:?} is not notified");
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

/// Lets the device carry a chain out.
fn grant_chain(ram: &mut Ram, live: &Live) {
    for &(extent, right) in &live.grants {
        ram.grant(extent, right);
    }
}

/// What was found about a ring, with its name.
fn name_faults(who: (u32, u16), faults: Vec<Fault>) -> impl Iterator<Item = Violation> {
    faults.into_iter().map(move |(invariant, what)| {
        let what = format!("{who:?} {what}");
        Violation { invariant, what }
    })
}

fn silence(ram: &mut Ram, ring: &mut Ring) {
    ring.running = false;
    ring.owed = false;
    ram.revoke(ring.frame.desc);
    ram.revoke(ring.frame.avail);
    ram.revoke(ring.frame.used);
    for (extent, _) in ring.live.values().flat_map(|live| &live.grants) {
        ram.revoke(*extent);
    }
}
