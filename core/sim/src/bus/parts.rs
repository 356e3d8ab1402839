//! Which request an operation is a part of, and whether it may be (I08, I11, I16).
//!
//! Reads and writes are recognised by the memory that they move, discards and write-zeroes by
//! their ranges, which legal guests keep apart. A sync may be for any flush under way.

use sluice_core::memory::Segment;
use sluice_core::op::{Op, OpKind, Piece};

use super::decode::{Expect, Kind, Live};
use super::memory::Inner;

/// A chain by guest, queue and head.
pub type ChainName = (u32, u16, u16);

/// Finds the chain of an operation that is being sent, and takes off it what is covered. A sync
/// has none.
///
/// # Errors
/// The invariant that is broken, and how.
pub fn attribute(
    inner: &mut Inner,
    op: &Op,
    image: u32,
    pieces: &[Piece],
) -> Result<Option<ChainName>, (&'static str, String)> {
    if op.kind == OpKind::Sync {
        return attribute_sync(inner, op, image).map(|()| None);
    }
    let kind = match op.kind {
        OpKind::Read => Kind::Read,
        OpKind::Write => Kind::Write,
        OpKind::Sync => Kind::Flush,
        OpKind::Discard => Kind::Discard,
        OpKind::WriteZeroes { .. } => Kind::WriteZeroes,
    };
    let name = match pieces.first() {
        Some(_) => by_memory(inner, op, pieces)?,
        None => by_range(inner, op, image, kind)
            .ok_or_else(|| ("I16", format!("nobody has asked for {op:?}")))?,
    };
    let live = find(inner, name).ok_or_else(|| ("I08", format!("{op:?} for {name:?}")))?;
    if live.expect != Expect::Done(kind) {
        return Err(("I16", format!("{op:?} for a chain that expects {:?}", live.expect)));
    }
    if live.failed {
        return Err(("I04", format!("{op:?} for {name:?}, which has failed")));
    }
    if !cover(&mut live.uncovered, op) {
        return Err(("I11", format!("{op:?} is not left to do for {name:?}")));
    }
    live.ops += 1;
    live.sent = true;
    Ok(Some(name))
}

/// Every flush under way has its sync now; which of them are needed is the cluster's to say. So
/// has every write that has been carried out and has to be stable.
fn attribute_sync(inner: &mut Inner, op: &Op, image: u32) -> Result<(), (&'static str, String)> {
    let mut any = false;
    let disks = &inner.bus.disks;
    for ((guest, _), ring) in &mut inner.bus.rings {
        let Some(disk) = disks.get(guest).filter(|disk| disk.image == image) else { continue };
        for live in ring.live.values_mut().filter(|live| live.fetched) {
            match live.expect {
                Expect::Done(Kind::Flush) => {
                    live.uncovered.clear();
                    any = true;
                }
                Expect::Done(Kind::Write | Kind::WriteZeroes) if disk.syncs => {
                    any |= live.uncovered.is_empty() && live.ops == 0;
                }
                _ => {}
            }
        }
    }
    if any { Ok(()) } else { Err(("I16", format!("nobody has asked for {op:?}"))) }
}

/// An operation has been answered.
pub fn finish(inner: &mut Inner, name: ChainName, failed: bool) {
    if let Some(live) = find(inner, name) {
        live.ops = live.ops.saturating_sub(1);
        live.failed |= failed;
    }
}

fn find(inner: &mut Inner, (guest, queue, head): ChainName) -> Option<&mut Live> {
    inner.bus.rings.get_mut(&(guest, queue))?.live.get_mut(&head)
}

fn by_memory(
    inner: &mut Inner,
    op: &Op,
    pieces: &[Piece],
) -> Result<ChainName, (&'static str, String)> {
    let (mut name, mut done) = (None, 0);
    for piece in pieces {
        let Piece::Guest(segment) = *piece else {
            return Err(("I08", format!("{op:?} of a front end that is gone")));
        };
        for run in runs(inner, segment)? {
            let (chunk, at, len) = run;
            let owner = inner.bus.owner(chunk, at);
            let (who, head, before) =
                owner.ok_or_else(|| ("I05", format!("{op:?} moves {segment:?}: nobody's")))?;
            let found = (who.guest, who.queue.unwrap_or(0), head);
            if *name.get_or_insert(found) != found {
                return Err(("I11", format!("{op:?} moves memory of two chains")));
            }
            let offset = find(inner, found).map_or(0, |live| live.offset);
            if offset + before != op.offset + done {
                return Err(("I11", format!("{op:?} moves byte {before} of {found:?} at {done}")));
            }
            done += len as u64;
        }
    }
    if done != op.len {
        return Err(("I11", format!("{op:?} has pieces of {done} bytes")));
    }
    name.ok_or_else(|| ("I11", format!("{op:?} moves nothing")))
}

/// A chunk, the first byte in it, and how many.
type Run = (usize, usize, usize);

/// A segment's first and last byte in the guests' memory; what lies between follows from them.
fn runs(inner: &mut Inner, segment: Segment) -> Result<Vec<Run>, (&'static str, String)> {
    let outside = |_| ("I07", format!("{segment:?} is not mapped"));
    let len = segment.len as usize;
    let all = inner.locate(segment.region(), segment.offset, len).map_err(outside)?;
    Ok(vec![(all.chunk, all.at, len - 1), (all.chunk, all.at + len - 1, 1)])
}

fn by_range(inner: &Inner, op: &Op, image: u32, kind: Kind) -> Option<ChainName> {
    inner.bus.rings.iter().find_map(|(&(guest, queue), ring)| {
        let disk = inner.bus.disks.get(&guest)?;
        let wants = |live: &Live| {
            let range = live.uncovered.iter().any(|&(start, end)| contains(start, end, op));
            live.expect == Expect::Done(kind) && live.fetched && !live.failed && range
        };
        let found = ring.live.iter().find(|(_, live)| disk.image == image && wants(live));
        found.map(|(&head, _)| (guest, queue, head))
    })
}

const fn contains(start: u64, end: u64, op: &Op) -> bool {
    start <= op.offset && op.offset + op.len <= end
}

/// Takes an operation's range off the ranges that are left to do.
fn cover(uncovered: &mut Vec<(u64, u64)>, op: &Op) -> bool {
    let Some(found) = uncovered.iter().position(|&(start, end)| contains(start, end, op)) else {
        return false;
    };
    let (start, end) = uncovered.swap_remove(found);
    let rest = [(start, op.offset), (op.offset + op.len, end)];
    uncovered.extend(rest.into_iter().filter(|(start, end)| start < end));
    true
}
