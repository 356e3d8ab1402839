//! Operations under way, and the cluster's map.

use sluice_core::image::ImageId;
use sluice_core::op::{Op, OpKind, Piece, Reply};
use sluice_core::placement::{OsdNum, PgNum, Update};
use sluice_core::shard::{Granted, Input};

use super::{Event, World};
use crate::bus::parts::{ChainName, attribute};

/// An operation that was sent and has not been answered.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    op: Op,
    pub(super) image: u32,
    name: Option<ChainName>,
    payload: Vec<u8>,
    stage: Stage,
}

impl Flight {
    /// The queue it came from, unless it is a hostile guest's or a sync.
    pub(super) fn queue(&self) -> Option<(u32, u16)> {
        self.name.map(|(guest, queue, _)| (guest, queue))
    }

    /// Whose it is, unless it is a hostile guest's.
    pub(super) fn guest(&self) -> Option<u32> {
        self.name.map(|(guest, _, _)| guest)
    }
}

/// The end of an operation that the shard has not heard of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) reply: Reply,
    pub(super) name: Option<ChainName>,
    pub(super) failed: bool,
    /// The image, when it was a sync that failed.
    pub(super) sync_failed: Option<u32>,
}

/// What an operation does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Takes its payload from the guest.
    Grab,
    /// Has its effect.
    Apply,
    /// Lands in the guest and is answered.
    Land(i64),
}

impl World<'_> {
    /// The shard sends an operation.
    pub(super) fn send(&mut self, op: &Op) {
        self.ops_sent += 1;
        let image = match self.cluster.check(op) {
            Ok(image) => image,
            Err((invariant, what)) => return self.fault(invariant, what),
        };
        let (number, Op { kind, target, offset, len, .. }) = (self.ops_sent, *op);
        self.line(None, "op", format_args!("{number} {kind:?} {target:?} {offset}+{len}"));
        //= spec/lifecycle.md#LIF-11
        if !self.captured[image as usize] {
            self.fault("I09", format!("{op:?} without a capture"));
        }
        //= spec/blk.md#BLK-16
        let modifies = !matches!(op.kind, OpKind::Read | OpKind::Sync);
        if modifies && self.poisoned[image as usize] {
            self.fault("I02", format!("{op:?} on a poisoned image"));
        }
        let owners = &self.options.guests;
        let watched = owners.iter().any(|(build, of)| *of == image && !build.open);
        let pieces: Vec<Piece> = self.shard.pieces(op.id).collect();
        let mut name = None;
        if watched {
            let found = attribute(&mut self.mem.inner(), op, image, &pieces);
            match found {
                Ok(found) => name = found,
                Err((invariant, what)) => return self.fault(invariant, what),
            }
        }
        let payload = vec![0; usize::try_from(op.len).unwrap_or(0)];
        let payload = if pieces.is_empty() { Vec::new() } else { payload };
        let flight = Flight { op: *op, image, name, payload, stage: Stage::Grab };
        self.flights.insert(self.ops_sent, flight);
        self.plan_op(self.ops_sent);
    }

    fn plan_op(&mut self, number: u64) {
        let delay = self.prng.skewed(self.options.latency_max);
        self.clock.plan(delay, Event::Op(number));
    }

    pub(super) fn advance_op(&mut self, number: u64) {
        let Some(mut flight) = self.flights.remove(&number) else { return };
        flight.stage = match flight.stage {
            Stage::Grab => {
                if flight.op.kind == OpKind::Write {
                    self.grab(&mut flight);
                }
                Stage::Apply
            }
            Stage::Apply => Stage::Land(self.apply(&mut flight)),
            Stage::Land(result) => return self.land(number, &flight, result),
        };
        self.flights.insert(number, flight);
        self.plan_op(number);
    }

    fn apply(&mut self, flight: &mut Flight) -> i64 {
        let Flight { op, image, name, .. } = *flight;
        let result = self.cluster.apply(&op, image, &mut flight.payload);
        let certain = matches!(op.kind, OpKind::Write | OpKind::WriteZeroes { .. });
        if let (Some(name), true) = (name, certain) {
            let (first, sectors) = (op.offset / 512, op.len / 512);
            self.durable.applied(name, first, sectors, self.cluster.effects);
        }
        result
    }

    /// Who sent them is dead: what has its payload has its effect now, or never.
    pub(super) fn end_flights(&mut self) {
        for mut flight in core::mem::take(&mut self.flights).into_values() {
            if flight.stage == Stage::Apply && self.prng.chance(500) {
                self.apply(&mut flight);
            }
        }
    }

    /// The payload of a write is read from the guest's memory, whole.
    fn grab(&mut self, flight: &mut Flight) {
        let mut at = 0;
        for piece in self.shard.pieces(flight.op.id) {
            let (moved, len) = match piece {
                Piece::Guest(segment) => {
                    let len = segment.len as usize;
                    (self.mem.carry_out(segment, &mut flight.payload[at..at + len]).is_ok(), len)
                }
                Piece::Skip(len) => (false, usize::try_from(len).unwrap_or(0)),
            };
            if !moved {
                let what = format!("the payload of {:?} is gone", flight.op);
                self.mem.inner().bus.fault("I01", what);
            }
            at += len;
        }
    }

    fn land(&mut self, number: u64, flight: &Flight, result: i64) {
        if flight.op.kind == OpKind::Read {
            let mut at = 0;
            for piece in self.shard.pieces(flight.op.id) {
                match piece {
                    Piece::Guest(segment) => {
                        let len = segment.len as usize;
                        // Where it lies was checked when the operation was sent.
                        let _ = self.mem.carry_in(segment, &flight.payload[at..at + len]);
                        at += len;
                    }
                    Piece::Skip(len) => at += usize::try_from(len).unwrap_or(0),
                }
            }
        }
        self.line(None, "reply", format_args!("{number} {result}"));
        let moved = matches!(flight.op.kind, OpKind::Read | OpKind::Write);
        let due = if moved { i64::try_from(flight.op.len).unwrap_or(i64::MAX) } else { 0 };
        let failed = result != due;
        if failed && flight.op.kind == OpKind::Sync {
            self.cluster.give_up(&flight.op, flight.image);
        }
        let sync_failed = (failed && flight.op.kind == OpKind::Sync).then_some(flight.image);
        let reply = Reply { id: flight.op.id, result, version: 0 };
        self.answers.push(Answer { reply, name: flight.name, failed, sync_failed });
        self.wake();
    }

    pub(super) fn decide_capture(&mut self, image: u32, question: u32) {
        if self.questions[image as usize] != question {
            return;
        }
        let refused = !self.is_healing() && self.prng.chance(self.options.refusals);
        self.line(None, "captured", format_args!("{image} {}", !refused));
        let granted = if refused {
            let delay = self.prng.skewed(self.options.capture_max);
            self.clock.plan(delay, Event::Capture(image, question));
            Granted::No
        } else {
            self.captured[image as usize] = true;
            Granted::Yes
        };
        self.input(Input::Capture(ImageId(image), granted));
    }

    pub(super) fn draw_osd(&mut self) -> Option<OsdNum> {
        Some(OsdNum(u32::try_from(1 + self.prng.below(self.options.osds)).unwrap_or(1)))
    }

    pub(super) fn move_group(&mut self, pg: u32, osd: Option<OsdNum>) {
        self.cluster.move_group(PgNum(pg), osd);
        self.update(Update::Primary { pool: self.options.pool.id, pg: PgNum(pg), osd });
    }

    /// A placement group loses its primary, or gets one; rarely the whole pool is told anew.
    pub(super) fn move_any_group(&mut self) {
        if self.is_healing() {
            return;
        }
        let pg = 1 + self.prng.below(self.options.pool.pg_count.into());
        let pg = u32::try_from(pg).unwrap_or(1);
        match self.prng.below(16) {
            0 => {
                for pg in 1..=self.options.pool.pg_count {
                    self.cluster.move_group(PgNum(pg), None);
                }
                self.update(Update::Pool(self.options.pool));
            }
            1..=5 => self.move_group(pg, None),
            // Two groups change places.
            6..=9 => {
                let other = u32::try_from(1 + self.prng.below(self.options.pool.pg_count.into()));
                let other = other.unwrap_or(1);
                let at = |pg: u32| self.cluster.primaries[pg as usize - 1];
                let (one, two) = (at(pg), at(other));
                self.move_group(pg, two);
                self.move_group(other, one);
            }
            _ => {
                let osd = self.draw_osd();
                self.move_group(pg, osd);
            }
        }
        let delay = 200_000 / self.options.moves;
        let delay = 1 + self.prng.skewed(delay);
        self.clock.plan(delay, Event::Move);
    }
}
