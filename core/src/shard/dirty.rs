//! What a shard writes to its guests, for the dirty log.

use crate::complete;
use crate::device::Device;
use crate::dirty::{DirtyLog, OutOfLog};
use crate::inflight::Inflight;
use crate::limits::SEGMENTS_MAX;
use crate::memory::{MemoryMap, Segment, SharedMemory};
use crate::planted::{Fault, planted};
use crate::request::Request;
use crate::slots::{Fifo, Slots};
use crate::virtqueue::{QueueFault, Ring};

/// Marks where the data of a request lands, if it has a landing place.
//= spec/migration.md#MIG-3
pub(super) fn log_landing(
    mem: &impl SharedMemory,
    device: &Device,
    request: &Request,
    segments: &[Segment; SEGMENTS_MAX],
) -> Result<(), OutOfLog> {
    let Some(log) = device.dirty_log() else { return Ok(()) };
    request.landing(segments).iter().try_for_each(|s| log_segment(mem, &device.map, log, s))
}

/// The same for requests that have ended: what they wrote is in memory by now.
//= spec/migration.md#MIG-3
pub(super) fn log_landings(
    mem: &impl SharedMemory,
    device: &Device,
    requests: &Slots<'_, Request, 1>,
    segments: &[[Segment; SEGMENTS_MAX]],
    ended: &Fifo<0>,
) -> Result<(), OutOfLog> {
    let mut ended = ended.iter(requests);
    ended
        .try_for_each(|(slot, request)| log_landing(mem, device, request, &segments[slot as usize]))
}

/// Marks what the device writes of a ring.
//= spec/migration.md#MIG-4
pub(super) fn log_ring(
    mem: &impl SharedMemory,
    device: &Device,
    ring: &Ring,
) -> Result<(), OutOfLog> {
    let Some(log) = device.dirty_log() else { return Ok(()) };
    ring.written().into_iter().try_for_each(|(at, len)| log.mark(mem, &device.map, at, len))
}

/// Gives a batch back as [`complete::publish`] does, between marks, as the front end may read the
/// log and clear it at any moment, and this process may die at any. Everything is marked before the
/// first store. What no successor can know of, data and status bytes, is marked again before the
/// driver has its chains back, and the ring, which a successor marks too, behind the last store.
//= spec/migration.md#MIG-3
//= spec/migration.md#MIG-4
//= spec/migration.md#MIG-6
pub(super) fn publish(
    mem: &impl SharedMemory,
    device: &Device,
    ring: &mut Ring,
    inflight: &mut Option<Inflight>,
    requests: &Slots<'_, Request, 1>,
    segments: &[[Segment; SEGMENTS_MAX]],
    done: &Fifo<0>,
) -> Result<bool, QueueFault> {
    let Some(log) = device.dirty_log() else {
        return Ok(complete::publish(mem, ring, inflight, requests, done)?);
    };
    let mark = || {
        if !planted(Fault::LandingUnlogged) {
            log_landings(mem, device, requests, segments, done)?;
        }
        let mut done = done.iter(requests);
        done.try_for_each(|(_, request)| log_segment(mem, &device.map, log, &request.status_at))
    };
    mark()?;
    log_ring(mem, device, ring)?;
    let count = complete::fill(mem, ring, inflight, requests, done)?;
    if !planted(Fault::SecondMarkForgotten) {
        mark()?;
    }
    let wanted = complete::show(mem, ring, inflight, requests, done, count)?;
    if !planted(Fault::LastMarkForgotten) {
        log_ring(mem, device, ring)?;
    }
    Ok(wanted)
}

fn log_segment(
    mem: &impl SharedMemory,
    map: &MemoryMap,
    log: &DirtyLog,
    segment: &Segment,
) -> Result<(), OutOfLog> {
    log.mark(mem, map, (segment.region(), segment.offset), segment.len.into())
}
