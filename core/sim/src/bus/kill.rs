//! What stays of the rings when the device is killed, and what its successor has to know.

use super::decode::{Live, Source, decode};
use super::ram::{Extent, Ram};
use super::{Bus, Side, silence};
use crate::crash::in_flight;
use crate::log::Violation;

impl Bus {
    /// The device is dead: it touches nothing any more. Its stores are visible by now.
    pub fn killed(&mut self, ram: &mut Ram) {
        for ring in self.rings.values_mut() {
            ring.left |= ring.running;
            silence(ram, ring);
            ring.enabled = false;
        }
    }

    /// A ring is about to be started with this inflight area, or without one, after something
    /// may have been left. What the
    /// area says is in flight (I13) is all that was sent, and nothing that was not taken.
    pub fn take_over(&mut self, ram: &Ram, who: (u32, u16), area: Option<Extent>) {
        let Some(ring) = self.rings.get_mut(&who).filter(|ring| ring.left) else { return };
        ring.left = false;
        // Packed rings are not tracked, and their worlds see no kills.
        let Side::Split(side) = &mut ring.side else { return };
        let heads =
            area.map_or_else(|| Ok(Vec::new()), |area| in_flight(ram.bytes(area), side.returned()));
        let mut found = Vec::new();
        let heads = heads.unwrap_or_else(|what| {
            found.push(what);
            Vec::new()
        });
        let disk = self.disks.get(&ring.frame.guest).copied().unwrap_or_default();
        for (&head, live) in &mut ring.live {
            let marked = heads.contains(&head);
            if marked && !live.fetched {
                found.push(format!("{head} is in flight and was not taken"));
            }
            if live.sent && !marked && area.is_some() {
                found.push(format!("{head} was sent and is not in flight"));
            }
            let source = Source::Split { table: ring.frame.desc, head };
            let fresh = decode(ram, ring.frame.guest, &source, &disk);
            *live = Live { fetched: marked, before: live.before.clone(), ..fresh };
        }
        if let Some(head) = heads.iter().find(|head| !ring.live.contains_key(head)) {
            found.push(format!("{head} is in flight and nobody waits for it"));
        }
        side.take_over(heads.len());
        self.found.extend(found.into_iter().map(|what| Violation {
            invariant: "I13",
            what: format!("{who:?} starts again: {what}"),
        }));
    }

    /// Whether the driver of a ring waits for anything.
    #[must_use]
    pub fn is_waiting(&self, who: (u32, u16)) -> bool {
        self.rings.get(&who).is_some_and(|ring| !ring.live.is_empty())
    }
}
