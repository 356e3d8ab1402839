//! Giving chains back: the only writer of status bytes and used rings.
//!
//! Everything a front end, a guest or a successor after SIGKILL may conclude from memory follows
//! from the order of the stores below, for a whole batch at once. It is in two halves, because a
//! dirty log has to be told between them of what only the first one writes.

use crate::inflight::Inflight;
use crate::memory::{OutOfRegion, SharedMemory};
use crate::planted::{Fault, planted};
use crate::request::Request;
use crate::slots::{Fifo, Slots};
use crate::virtqueue::Ring;

/// Gives the chains of all `done` requests back, in their order, and says whether the driver
/// wants to hear of it.
///
/// # Errors
/// When a ring or the inflight region is no longer mapped; the queue is broken then.
#[inline]
pub(crate) fn publish(
    mem: &impl SharedMemory,
    ring: &mut Ring,
    inflight: &mut Option<Inflight>,
    requests: &Slots<'_, Request, 1>,
    done: &Fifo<0>,
) -> Result<bool, OutOfRegion> {
    let count = fill(mem, ring, inflight, requests, done)?;
    show(mem, ring, inflight, requests, done, count)
}

/// The first half: everything that nobody looks at yet. Says how many chains there are.
///
/// # Errors
/// As [`publish`].
//= spec/virtqueue.md#VQ-11
//= spec/blk.md#BLK-15
//= spec/inflight.md#INF-5
#[inline]
pub(crate) fn fill(
    mem: &impl SharedMemory,
    ring: &mut Ring,
    inflight: &mut Option<Inflight>,
    requests: &Slots<'_, Request, 1>,
    done: &Fifo<0>,
) -> Result<u16, OutOfRegion> {
    ring.prefetch_used(mem);
    let mut count = 0;
    for (_, request) in done.iter(requests) {
        // 1. The status byte, into memory that the request holds.
        let status_at = request.status_at;
        if status_at.len != 0 {
            mem.write(status_at.region(), status_at.offset, &(request.status as u8))?;
        }
        // 2. Its link in the batch's list.
        if let Some(inflight) = inflight {
            inflight.link(mem, request.token)?;
        }
        // 3. Its used entry, which nobody looks at before the index moves.
        ring.write_used(mem, count, request.token, request.used_len())?;
        count += 1;
    }
    Ok(count)
}

/// The second half: from its middle on the driver has its chains back.
///
/// # Errors
/// As [`publish`].
//= spec/virtqueue.md#VQ-11
//= spec/inflight.md#INF-5
#[inline]
pub(crate) fn show(
    mem: &impl SharedMemory,
    ring: &mut Ring,
    inflight: &mut Option<Inflight>,
    requests: &Slots<'_, Request, 1>,
    done: &Fifo<0>,
    count: u16,
) -> Result<bool, OutOfRegion> {
    // 4. The batch's list is whole before the index that it explains.
    if let Some(inflight) = inflight {
        inflight.close_batch(mem)?;
    }
    // 5. The used index: from here on the driver has its chains back.
    if !planted(Fault::ClearedFirst) {
        ring.publish(mem, count)?;
    }
    if let Some(inflight) = inflight
        && planted(Fault::SettledEarly)
    {
        inflight.settle(mem, ring.next_used())?;
    }
    // 6. The marks, and the heads may come again.
    for (_, request) in done.iter(requests) {
        mem.hand_over(request.status_at.region(), request.status_at.offset);
        if let Some(inflight) = inflight {
            inflight.clear(mem, request.token)?;
        }
        ring.forget(request.token);
    }
    if planted(Fault::ClearedFirst) {
        ring.publish(mem, count)?;
    }
    // 7. The region agrees with the ring.
    if let Some(inflight) = inflight {
        inflight.settle(mem, ring.next_used())?;
    }
    // The index is visible before the driver's wish is read, or both sides could sleep.
    if !planted(Fault::NoFence) {
        mem.full_fence();
    }
    ring.wants_notify(mem, count)
}
