//! Whether the core does with a chain what the reference says.

use sluice_core::memory::{RegionId, SharedMemory};
use sluice_core::op::{Op, OpKind, Piece};

use crate::reference::{Answer, Deed, Place, Run, cut};
use crate::rig::{RING, Rig};
use crate::watched::Watched;

/// What the core did with a chain.
struct Done {
    ops: Vec<(Op, Vec<Run>)>,
    used: Vec<(u32, u32)>,
    /// Bytes it wrote outside of the rings when it took the chain, and when it gave it back.
    early: Vec<Run>,
    late: Vec<Run>,
}

/// Makes the chain at `head` available and compares what becomes of it with the reference. All
/// operations end well. The answer, for statistics.
///
/// # Panics
/// When the two do not agree.
pub fn compare(rig: &mut Rig<'_>, head: u16) -> Answer {
    let expected = rig.reference().answer(head);
    agree(rig, head, expected, |rig| rig.offer(head))
}

/// The same for a packed ring, with a chain of these buffers in the next places.
///
/// # Panics
/// When the two do not agree.
pub fn compare_row(rig: &mut Rig<'_>, id: u16, buffers: &[(u64, u32, u16)]) -> Answer {
    rig.write_row(id, buffers);
    let expected = rig.reference().answer_row(rig.next_place().0);
    agree(rig, id, expected, |rig| rig.offer_row(id, buffers))
}

fn agree(
    rig: &mut Rig<'_>,
    head: u16,
    expected: Answer,
    offer: impl FnOnce(&mut Rig<'_>),
) -> Answer {
    let done = run(rig, offer);
    let context = || format!("{expected:x?}\n{:x?}\n{:?}", done.ops, done.used);
    let used = (u32::from(head), u32::try_from(expected.used()).expect("a used length"));
    assert_eq!(done.used, [used], "{}", context());
    let (status, place): (u8, Option<Place>) = match &expected {
        Answer::None => (0, None),
        Answer::Refused(status, place) => (*status, Some(*place)),
        Answer::Do(_, place) => (0, Some(*place)),
    };
    // A status byte on top of the used ring is the guest's own harm, and not seen here.
    let ring = rig.device_area();
    let place = place.filter(|(region, offset)| *region != RING || !ring.contains(offset));
    let written = place.map(|(region, offset)| (region, offset, 1));
    assert_eq!(done.late, Vec::from_iter(written), "{}", context());
    if let Some((region, offset)) = place {
        assert_eq!(rig.mem.read::<u8>(region, offset), Ok(status), "{}", context());
    }
    let agree = match &expected {
        Answer::Do(deed, _) => does(&done, deed),
        Answer::None | Answer::Refused(..) => done.ops.is_empty() && done.early.is_empty(),
    };
    assert!(agree, "{}", context());
    expected
}

fn run(rig: &mut Rig<'_>, offer: impl FnOnce(&mut Rig<'_>)) -> Done {
    let mem = Watched::new(rig.mem);
    offer(rig);
    rig.take_in(&mem);
    let early = outside(&mem, rig);
    let mut ops = Vec::new();
    while let Some(op) = rig.next_op() {
        ops.push((op, joined(rig.shard.pieces(op.id))));
        rig.reply_ok(&op);
    }
    mem.forget();
    rig.give_back(&mem);
    Done { ops, used: rig.used(), early, late: outside(&mem, rig) }
}

/// What was written anywhere but in the used ring.
fn outside(mem: &Watched<'_>, rig: &Rig<'_>) -> Vec<Run> {
    let ring = rig.device_area();
    let writes = mem.writes().into_iter().map(|w| (w.region, w.offset, w.len));
    let kept = writes.filter(|w| w.0 != RING || !ring.contains(&w.1)).collect::<Vec<_>>();
    cut(&kept, 0, u64::MAX)
}

fn joined(pieces: impl Iterator<Item = Piece>) -> Vec<Run> {
    let run = |piece| match piece {
        Piece::Guest(s) => (s.region(), s.offset, s.len.into()),
        Piece::Skip(len) => (RegionId(u32::MAX), 0, len),
    };
    cut(&pieces.map(run).collect::<Vec<_>>(), 0, u64::MAX)
}

/// Whether operations and early writes amount to the deed.
fn does(done: &Done, deed: &Deed) -> bool {
    let ops: Vec<_> = done.ops.iter().map(|(op, _)| (op.kind, op.offset, op.len)).collect();
    let quiet = done.early.is_empty();
    match deed {
        Deed::Read(offset, runs) => quiet && moves(done, OpKind::Read, *offset, runs),
        Deed::Write(offset, runs) => quiet && moves(done, OpKind::Write, *offset, runs),
        Deed::Flush => quiet && ops == [(OpKind::Sync, 0, 0)],
        Deed::Discard(ranges) => {
            let expected = ranges.iter().map(|&(at, len)| (OpKind::Discard, at, len));
            quiet && ops.into_iter().eq(expected)
        }
        Deed::WriteZeroes(ranges) => {
            let kind = |unmap| OpKind::WriteZeroes { unmap };
            let expected = ranges.iter().map(|&(at, len, unmap)| (kind(unmap), at, len));
            quiet && ops.into_iter().eq(expected)
        }
        Deed::GetId(runs) => ops.is_empty() && done.early == cut(runs, 0, 20),
    }
}

/// Whether the operations, one behind the other, move these bytes.
fn moves(done: &Done, kind: OpKind, offset: u64, runs: &[Run]) -> bool {
    let mut at = offset;
    let mut all = Vec::new();
    for (op, pieces) in &done.ops {
        if op.kind != kind || op.offset != at {
            return false;
        }
        at += op.len;
        all.extend_from_slice(pieces);
    }
    cut(&all, 0, u64::MAX) == runs
}
