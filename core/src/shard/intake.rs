//! From rings to requests: whose turn it is, and how many chains are taken.

use super::{Shard, Turn};
use crate::blk::{BlkRequest, Status, Verdict, parse};
use crate::device::QueueId;
use crate::image::{Capture, CaptureNews, ImageId};
use crate::limits::{EMPTY_VISITS_MAX, QUEUE_BATCH};
use crate::memory::{Segment, SharedMemory};
use crate::request::{Cursor, Request, RequestKind};
use crate::trace::TraceEvent;
use crate::virtqueue::chain::walk;
use crate::virtqueue::layout::Descriptor;
use crate::virtqueue::{ChainToken, QueueFault};

/// How much one poll may do.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Chains taken, over all queues.
    pub chains: u32,
    /// Armed queues looked at.
    ///
    /// While a shard polls, this is how it finds work on queues that have been idle: a few at
    /// each poll, so that a hundred idle disks cost what a few do. 0 when their kicks are heard.
    pub samples: u32,
}

/// What one poll did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Chains taken.
    pub chains: u32,
}

/// Whether a shard may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Every queue will notify.
    Idle,
    /// Chains came while the queues were being armed.
    More,
}

impl Shard<'_> {
    /// A driver has notified its queue.
    pub fn handle_kick(&mut self, mem: &impl SharedMemory, id: QueueId) {
        self.counters.kicks += 1;
        let Some(index) = self.find_queue(id) else { return };
        if self.queues[index].turn == Turn::Armed {
            self.armed.remove(&mut self.queues, index);
            self.activate(mem, index);
        }
    }

    /// Visits every active queue and some armed ones, and takes chains from them.
    ///
    /// Queues take turns: when the budget ends early, the next poll begins where this one
    /// stopped.
    //= spec/limits.md#LIM-3
    //= spec/limits.md#LIM-4
    pub fn poll_queues(&mut self, mem: &impl SharedMemory, budget: Budget) -> Work {
        let mut work = Work::default();
        if self.stopping {
            return work;
        }
        for _ in 0..budget.samples.min(self.armed.len()) {
            self.sample(mem);
        }
        for _ in 0..self.active.len() {
            let left = budget.chains - work.chains;
            if left == 0 || self.requests.available() == 0 {
                break;
            }
            let Some(index) = self.active.pop(&mut self.queues) else { break };
            // Its turn ends at the back of the list, unless the visit breaks it or it is idle.
            self.active.push(&mut self.queues, index);
            match self.visit(mem, index, left) {
                Ok(0) => self.count_empty(mem, index),
                Ok(taken) => {
                    self.queues[index].empty = 0;
                    work.chains += taken;
                }
                Err(fault) => self.break_queue(index, fault),
            }
        }
        work
    }

    /// Asks every active queue's driver for notifications.
    //= spec/virtqueue.md#VQ-13
    pub fn arm(&mut self, mem: &impl SharedMemory) -> Idle {
        let mut idle = Idle::Idle;
        for _ in 0..self.active.len() {
            let Some(index) = self.active.first() else { break };
            if !self.arm_queue(mem, index) {
                idle = Idle::More;
            }
        }
        idle
    }

    /// Whether any queue is served at all: if not, only the control side can bring work.
    #[must_use]
    pub const fn has_queues(&self) -> bool {
        !self.active.is_empty() || !self.armed.is_empty()
    }

    fn sample(&mut self, mem: &impl SharedMemory) {
        let Some(index) = self.armed.pop(&mut self.queues) else { return };
        let available = match &mut self.queues[index].ring {
            Some(ring) => ring.available(mem),
            None => Ok(0),
        };
        if available == Ok(0) {
            self.armed.push(&mut self.queues, index);
        } else {
            self.activate(mem, index);
        }
    }

    fn count_empty(&mut self, mem: &impl SharedMemory, index: u32) {
        let queue = &mut self.queues[index];
        queue.empty = queue.empty.saturating_add(1);
        if queue.empty >= EMPTY_VISITS_MAX {
            self.active.remove(&mut self.queues, index);
            self.active.push_front(&mut self.queues, index);
            self.arm_queue(mem, index);
        }
    }

    /// Arms the first active queue; `false` when it has work after all and stays active.
    fn arm_queue(&mut self, mem: &impl SharedMemory, index: u32) -> bool {
        let first = self.active.pop(&mut self.queues);
        debug_assert_eq!(first, Some(index));
        let queue = &mut self.queues[index];
        queue.empty = 0;
        let armed = match &mut queue.ring {
            Some(ring) => ring.arm(mem),
            None => Ok(false),
        };
        match armed {
            Ok(false) => {
                queue.turn = Turn::Armed;
                self.armed.push(&mut self.queues, index);
                true
            }
            Ok(true) => {
                self.active.push(&mut self.queues, index);
                false
            }
            Err(fault) => {
                self.active.push(&mut self.queues, index);
                self.break_queue(index, fault);
                true
            }
        }
    }

    /// Puts a queue that is in no list of turns among the active ones.
    pub(super) fn activate(&mut self, mem: &impl SharedMemory, index: u32) {
        let queue = &mut self.queues[index];
        queue.turn = Turn::Active;
        queue.empty = 0;
        let disarmed = match &mut queue.ring {
            Some(ring) => ring.disarm(mem),
            None => Ok(()),
        };
        self.active.push(&mut self.queues, index);
        if disarmed.is_err() {
            self.break_queue(index, QueueFault::RingUnmapped);
        }
    }

    /// Takes a queue out of its turns.
    pub(super) fn deactivate(&mut self, index: u32) {
        match self.queues[index].turn {
            Turn::None => {}
            Turn::Active => {
                self.active.remove(&mut self.queues, index);
            }
            Turn::Armed => {
                self.armed.remove(&mut self.queues, index);
            }
        }
        self.queues[index].turn = Turn::None;
    }

    /// Stops serving a queue. What is under way on it still ends.
    //= spec/virtqueue.md#VQ-1
    pub(super) fn break_queue(&mut self, index: u32, fault: QueueFault) {
        if self.queues[index].broken.is_some() {
            return;
        }
        self.deactivate(index);
        let queue = &mut self.queues[index];
        queue.broken = Some(fault);
        queue.reported = false;
        let (id, device) = (queue.id(), queue.device);
        self.counters.broken_queues += 1;
        self.trace.push(TraceEvent::QueueBroken(id, fault));
        self.devices[device].broken += 1;
        self.list_device(device);
    }

    /// Takes up to `limit` chains from one queue.
    ///
    /// The driver's lines are asked for a stage ahead of their use: heads, then the first
    /// descriptors, then the headers that these point to.
    //= spec/limits.md#LIM-1
    fn visit(
        &mut self,
        mem: &impl SharedMemory,
        index: u32,
        limit: u32,
    ) -> Result<u32, QueueFault> {
        let queue = &mut self.queues[index];
        let device = &mut self.devices[queue.device];
        let Some(ring) = &mut queue.ring else { return Ok(0) };
        let available = ring.available(mem)?;
        if available == 0 {
            return Ok(0);
        }
        let limit = limit.min(self.requests.available()).min(QUEUE_BATCH.into());
        let wanted = u16::try_from(limit).unwrap_or(QUEUE_BATCH).min(available);

        let mut heads = [0; QUEUE_BATCH as usize];
        let mut firsts = [Descriptor::EMPTY; QUEUE_BATCH as usize];
        let mut fault = None;
        let mut taken = 0;
        for head in &mut heads[..usize::from(wanted)] {
            match ring.take(mem) {
                Ok(found) => *head = found,
                Err(found) => {
                    fault = Some(found);
                    break;
                }
            }
            ring.prefetch_descriptor(mem, *head);
            taken += 1;
        }
        for (head, first) in heads.iter().zip(&mut firsts).take(taken) {
            *first = ring.descriptor(mem, *head)?;
            if let Some(place) = device.map.translate(first.addr.get(), 1) {
                mem.prefetch(place.segment.region(), place.segment.offset);
            }
        }
        let mut counted = 0;
        for (&head, &first) in heads.iter().zip(&firsts).take(taken) {
            self.admit(mem, index, head, first)?;
            counted += 1;
        }
        match fault {
            Some(fault) => Err(fault),
            None => Ok(counted),
        }
    }

    /// Makes a request of one chain.
    #[inline]
    fn admit(
        &mut self,
        mem: &impl SharedMemory,
        index: u32,
        head: u16,
        first: Descriptor,
    ) -> Result<(), QueueFault> {
        let queue = &mut self.queues[index];
        let device_index = queue.device;
        let device = &mut self.devices[device_index];
        let Some(ring) = &mut queue.ring else { return Ok(()) };
        if let Some(inflight) = &mut queue.inflight {
            inflight.mark(mem, ChainToken(head.into()))?;
        }
        let Some(slot) = self.requests.acquire() else { return Ok(()) };
        let segments = &mut self.segments[slot as usize];
        let ranges = &mut self.ranges[slot as usize];
        let chain = walk(mem, &device.map, ring, head, first, segments);
        let verdict = parse(mem, &device.limits, &chain, segments, ranges);
        device.map.hold(chain.regions);
        device.live += 1;
        queue.live += 1;
        self.counters.requests += 1;

        let image = device.config.image;
        let request = &mut self.requests[slot];
        *request = Request {
            queue: index,
            device: device_index,
            image: image.0,
            token: chain.token,
            regions: chain.regions,
            ..Request::EMPTY
        };
        let (kind, data) = match verdict {
            Verdict::Unanswerable => {
                self.counters.unanswerable += 1;
                self.complete(slot);
                return Ok(());
            }
            Verdict::Refuse(status, status_at) => {
                request.status = status;
                request.status_at = status_at;
                self.complete(slot);
                return Ok(());
            }
            Verdict::Accept(kind, data, status_at) => {
                request.status_at = status_at;
                (kind, data)
            }
        };
        request.first_segment = data.first;
        request.segments = data.count;
        let bytes = data.bytes;
        let len = u32::try_from(bytes).unwrap_or(u32::MAX);
        (request.kind, request.cursor) = match kind {
            BlkRequest::Read { offset } => {
                request.delivers = len;
                (RequestKind::Read, Cursor::payload(offset, bytes))
            }
            BlkRequest::Write { offset } => (RequestKind::Write, Cursor::payload(offset, bytes)),
            BlkRequest::Flush => (RequestKind::Flush, Cursor::DONE),
            BlkRequest::Discard { count } => (RequestKind::Discard, Cursor::ranges(count)),
            BlkRequest::WriteZeroes { count } => (RequestKind::WriteZeroes, Cursor::ranges(count)),
            BlkRequest::GetId => {
                let first = usize::from(data.first);
                let parts = &segments[first..first + usize::from(data.count)];
                request.delivers = write_id(mem, parts, &device.config.serial);
                self.complete(slot);
                return Ok(());
            }
        };
        self.submit(slot, image);
        Ok(())
    }

    /// Sends a parsed request on: to be cut, or to wait for its image.
    #[inline]
    fn submit(&mut self, slot: u32, id: ImageId) {
        if self.requests[slot].kind == RequestKind::Flush {
            self.requests[slot].cursor = Cursor::syncs(self.sync_holders(id));
        }
        let image = &mut self.images[id.0];
        let request = &mut self.requests[slot];
        //= spec/blk.md#BLK-16
        if image.config.poisoned && request.kind != RequestKind::Read {
            request.fail(Status::IoErr);
            self.complete(slot);
            return;
        }
        request.listed = true;
        match image.capture {
            Capture::Granted => self.cut.push(&mut self.requests, slot),
            Capture::Asked => image.waiting.push(&mut self.requests, slot),
            //= spec/lifecycle.md#LIF-11
            Capture::None => {
                image.waiting.push(&mut self.requests, slot);
                image.capture = Capture::Asked;
                image.news = Some(CaptureNews::Take);
                self.trace.push(TraceEvent::CaptureAsked(id));
                self.list_image(id.0);
            }
        }
    }

    /// A request has ended; its chain goes back at the next publish.
    #[inline]
    pub(super) fn complete(&mut self, slot: u32) {
        let request = &self.requests[slot];
        debug_assert!(!request.listed && request.is_done());
        let index = request.queue;
        let queue = &mut self.queues[index];
        queue.done.push(&mut self.requests, slot);
        if !queue.publishing {
            queue.publishing = true;
            self.publishing.push(&mut self.queues, index);
        }
    }
}

/// Copies the serial into a request's data, as much as there is room for.
fn write_id(mem: &impl SharedMemory, data: &[Segment], serial: &[u8]) -> u32 {
    let places = data.iter().flat_map(|s| (0..u64::from(s.len)).map(move |at| (s, at)));
    let mut written = 0;
    for ((segment, at), byte) in places.zip(serial) {
        if mem.write(segment.region(), segment.offset + at, byte).is_err() {
            break;
        }
        written += 1;
    }
    written
}
