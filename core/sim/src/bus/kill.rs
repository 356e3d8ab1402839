//! What stays of the rings when the device is killed, and what its successor has to know.

use super::ram::{Extent, Ram};
use super::{Bus, Side, silence};
use crate::crash::{in_flight, in_flight_packed};
use crate::either::either;
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

    /// A ring is about to be started with this inflight area, or without one, after something may
    /// have been left. What the area says is in flight (I13) is all that was sent, and nothing that
    /// was not taken.
    pub fn take_over(&mut self, ram: &Ram, who: (u32, u16), area: Option<Extent>) {
        let Some(ring) = self.rings.get_mut(&who).filter(|ring| ring.left) else { return };
        ring.left = false;
        let heads = match (&ring.side, area) {
            (_, None) => Ok(Vec::new()),
            (Side::Split(side), Some(area)) => in_flight(ram.bytes(area), side.returned()),
            (Side::Packed(_), Some(area)) => {
                in_flight_packed(ram.bytes(area), ram.bytes(ring.frame.desc))
            }
        };
        let mut found = Vec::new();
        let heads = heads.unwrap_or_else(|what| {
            found.push(what);
            Vec::new()
        });
        for (head, live) in &mut ring.live {
            let marked = heads.contains(head);
            if marked && !live.fetched {
                found.push(format!("{head} is in flight and was not taken"));
            }
            if live.sent && !marked && area.is_some() {
                found.push(format!("{head} was sent and is not in flight"));
            }
            live.begin_anew(marked);
        }
        if let Some(head) = heads.iter().find(|head| !ring.live.contains_key(head)) {
            found.push(format!("{head} is in flight and nobody waits for it"));
        }
        either!(&mut ring.side, side => side.take_over(&heads));
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
