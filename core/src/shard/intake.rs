//! From rings to requests: whose turn it is, and how many chains are taken.

use super::{Shard, Turn, dirty};
use crate::blk::{BlkRequest, Limits, Range, Status, Verdict, parse};
use crate::device::{Device, QueueId};
use crate::image::{Backing, Capture, CaptureNews, ImageConfig};
use crate::inflight::Inflight;
use crate::limits::{EMPTY_VISITS_MAX, QUEUE_BATCH, RANGES_MAX, SEGMENTS_MAX};
use crate::memory::{Segment, SharedMemory};
use crate::placement::PgMap;
use crate::planted::{Fault, planted};
use crate::request::{Cursor, Request, RequestKind};
use crate::trace::TraceEvent;
use crate::virtqueue::chain::{take_packed, walk};
use crate::virtqueue::{Chain, QueueFault, Ring};

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
    /// Queues that broke, some of whose chains may have been taken before.
    pub broken: u32,
}

impl Work {
    /// Whether anything follows from it.
    #[must_use]
    #[inline]
    pub const fn is_some(&self) -> bool {
        self.chains | self.broken != 0
    }
}

/// Whether a shard may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Every queue that could be served will notify.
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
        let broken = self.counters.broken_queues;
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
        work.broken = u32::try_from(self.counters.broken_queues - broken).unwrap_or(u32::MAX);
        work
    }

    /// Asks every active queue's driver for notifications.
    //= spec/virtqueue.md#VQ-13
    //= spec/limits.md#LIM-3
    pub fn arm(&mut self, mem: &impl SharedMemory) -> Idle {
        let mut idle = Idle::Idle;
        // What cannot be taken now is found when something has ended, and that wakes the shard.
        if self.stopping || self.requests.available() == 0 {
            return idle;
        }
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
        let device = &self.devices[queue.device];
        let armed = match &mut queue.ring {
            Some(ring) => ring.arm(mem).and_then(|more| {
                if !planted(Fault::WishUnlogged) {
                    dirty::log_ring(mem, device, ring)?;
                }
                Ok(more)
            }),
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
        let device = &self.devices[queue.device];
        let disarmed = match &mut queue.ring {
            Some(ring) => disarm(mem, device, ring),
            None => Ok(()),
        };
        self.active.push(&mut self.queues, index);
        if let Err(fault) = disarmed {
            self.break_queue(index, fault);
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
        // A stop that waited for more to be taken again waits no longer than for the rest.
        let drained = queue.live == 0 && queue.ring.as_mut().is_some_and(Ring::give_up);
        if drained && !queue.publishing {
            queue.publishing = true;
            self.publishing.push(&mut self.queues, index);
        }
        let queue = &mut self.queues[index];
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
        // Most drivers use first what came back last. Asked for before the ring has named the
        // chain, its lines come all at once. Header and status often lie in one, which is asked
        // for as one to be written, or it would have to come twice.
        let likely = &self.requests[queue.last];
        ring.prefetch(mem, likely.token);
        mem.prefetch_write(likely.status_at.region(), likely.status_at.offset);
        let header = &self.segments[queue.last as usize][0];
        mem.prefetch(header.region(), header.offset);
        let limit = limit.min(self.requests.available()).min(QUEUE_BATCH.into());
        let wanted = u16::try_from(limit).unwrap_or(QUEUE_BATCH).min(available);
        //= spec/recovery.md#REC-15
        let wanted = if queue.in_turn { wanted.min(u16::from(queue.live == 0)) } else { wanted };

        let (taken, mut fault) = match ring {
            Ring::Split(ring) => self.staged.take(mem, &device.map, ring, wanted),
            // Where a packed chain begins is known when the one before has been taken.
            Ring::Packed(_) => (wanted.into(), None),
        };
        let image = &mut self.images[device.config.image.0];
        let mut intake = Intake {
            limits: image.config.limits(device.features()),
            through: device.writes_through() && !planted(Fault::ThroughForgotten),
            device,
            queue: index,
            holders: sync_holders(&self.map, &image.config),
            unanswerable: 0,
        };
        image.keep();
        let ready = match image.capture {
            _ if planted(Fault::CaptureSkipped) => &mut self.cut,
            Capture::Granted => &mut self.cut,
            Capture::None | Capture::Asked => &mut image.waiting,
        };
        let waiting = ready.len();
        let mut count = 0;
        for at in 0..taken {
            let Some(slot) = self.requests.acquire() else { break };
            let segments = &mut self.segments[slot as usize];
            let map = &intake.device.map;
            let chain = match ring {
                Ring::Split(ring) => {
                    let (head, first) = self.staged.chain(at);
                    Ok(Some(walk(mem, map, ring, head, first, segments)))
                }
                Ring::Packed(ring) => {
                    let area = queue.inflight.as_mut().and_then(Inflight::packed);
                    take_packed(mem, map, ring, area, segments)
                }
            };
            let marked = match (&mut queue.inflight, &chain) {
                (Some(inflight), Ok(Some(chain))) => inflight.mark(mem, chain.token),
                _ => Ok(()),
            };
            let chain = match (chain, marked) {
                (Ok(Some(chain)), Ok(())) => chain,
                // The chains before this one are requests already, and have to be counted.
                (ended, marked) => {
                    self.requests.release(slot);
                    fault = ended.err().or(marked.err().map(QueueFault::from)).or(fault);
                    break;
                }
            };
            count += 1;
            queue.last = slot;
            let ranges = &mut self.ranges[slot as usize];
            let request = &mut self.requests[slot];
            let accepted = intake.admit(mem, &chain, segments, ranges, request);
            mem.prefetch_write(request.status_at.region(), request.status_at.offset);
            let logged = dirty::log_landing(mem, intake.device, request, segments);
            if let Err(out) = logged {
                // Nothing may land that is not logged.
                request.fail(Status::IoErr);
                fault = Some(out.into());
            }
            if accepted {
                ready.push(&mut self.requests, slot);
            } else if !planted(Fault::RefusedLost) {
                queue.done.push(&mut self.requests, slot);
            }
        }
        queue.live += count;
        intake.device.live += count;
        self.counters.requests += u64::from(count);
        self.counters.unanswerable += intake.unanswerable;
        //= spec/lifecycle.md#LIF-11
        if image.capture == Capture::None && ready.len() > waiting {
            image.capture = Capture::Asked;
            image.news = Some(CaptureNews::Take);
            let id = intake.device.config.image;
            self.trace.push(TraceEvent::CaptureAsked(id));
            self.list_image(id.0);
        }
        self.list_publishing(index);
        match fault {
            Some(fault) => Err(fault),
            None => Ok(count),
        }
    }

    /// Lists a queue for the next publish if it has something for it.
    #[inline]
    fn list_publishing(&mut self, index: u32) {
        let queue = &mut self.queues[index];
        if !queue.publishing && !queue.done.is_empty() {
            queue.publishing = true;
            self.publishing.push(&mut self.queues, index);
        }
    }

    /// A request has ended; its chain goes back at the next publish, unless what it has written
    /// has to be synced first.
    #[inline]
    pub(super) fn complete(&mut self, slot: u32) {
        let request = &mut self.requests[slot];
        debug_assert!(!request.listed && request.is_done());
        //= spec/blk.md#BLK-19
        if request.through && request.status == Status::Ok {
            request.flush(sync_holders(&self.map, &self.images[request.image].config));
            request.listed = true;
            self.cut.push(&mut self.requests, slot);
            return;
        }
        let index = request.queue;
        self.queues[index].done.push(&mut self.requests, slot);
        self.list_publishing(index);
    }
}

/// Tells a ring's driver that its notifications are of no use.
fn disarm(mem: &impl SharedMemory, device: &Device, ring: &mut Ring) -> Result<(), QueueFault> {
    ring.disarm(mem)?;
    Ok(dirty::log_ring(mem, device, ring)?)
}

/// Makes requests of the chains of one queue.
struct Intake<'d> {
    device: &'d mut Device,
    limits: Limits,
    queue: u32,
    /// Whether what is written has to be stable when it is given back.
    through: bool,
    /// How many looks a flush takes to find everybody it has to sync.
    holders: u32,
    /// Chains without a place for a status byte.
    unanswerable: u64,
}

impl Intake<'_> {
    /// Makes a request of one chain; `true` when there is something to carry out, `false` when
    /// it has its answer already.
    #[inline]
    fn admit(
        &mut self,
        mem: &impl SharedMemory,
        chain: &Chain,
        segments: &mut [Segment; SEGMENTS_MAX],
        ranges: &mut [Range; RANGES_MAX],
        request: &mut Request,
    ) -> bool {
        let (kind, data, status_at) = match parse(mem, &self.limits, chain, segments, ranges) {
            Verdict::Accept(kind, data, status_at) => (kind, data, status_at),
            Verdict::Refuse(status, status_at) => {
                self.fill(request, chain, RequestKind::Answered, Cursor::DONE, status_at);
                request.status = status;
                return false;
            }
            Verdict::Unanswerable => {
                self.unanswerable += 1;
                self.fill(request, chain, RequestKind::Answered, Cursor::DONE, Segment::EMPTY);
                return false;
            }
        };
        let (kind, cursor) = match kind {
            BlkRequest::Read { offset } => (RequestKind::Read, Cursor::payload(offset, data.bytes)),
            BlkRequest::Write { offset } => {
                (RequestKind::Write, Cursor::payload(offset, data.bytes))
            }
            BlkRequest::Flush if planted(Fault::FlushSkipped) => (RequestKind::Flush, Cursor::DONE),
            BlkRequest::Flush => (RequestKind::Flush, Cursor::steps(self.holders)),
            BlkRequest::Discard { count } => (RequestKind::Discard, Cursor::steps(count.into())),
            BlkRequest::WriteZeroes { count } => {
                (RequestKind::WriteZeroes, Cursor::steps(count.into()))
            }
            BlkRequest::GetId => {
                let first = usize::from(data.first);
                let places = &segments[first..first + usize::from(data.count)];
                self.fill(request, chain, RequestKind::Answered, Cursor::DONE, status_at);
                request.delivers = write_id(mem, places, &self.device.config.serial);
                request.first_segment = data.first;
                request.segments = data.count;
                return false;
            }
        };
        self.fill(request, chain, kind, cursor, status_at);
        request.first_segment = data.first;
        request.segments = data.count;
        if kind == RequestKind::Read {
            request.delivers = u32::try_from(data.bytes).unwrap_or(u32::MAX);
        }
        //= spec/blk.md#BLK-19
        request.through =
            self.through && matches!(kind, RequestKind::Write | RequestKind::WriteZeroes);
        request.listed = true;
        true
    }

    #[inline]
    fn fill(
        &mut self,
        request: &mut Request,
        chain: &Chain,
        kind: RequestKind,
        cursor: Cursor,
        status_at: Segment,
    ) {
        *request = Request {
            queue: self.queue,
            image: self.device.config.image.0,
            kind,
            token: chain.token,
            status_at,
            regions: chain.regions,
            cursor,
            ..Request::EMPTY
        };
    }
}

/// How many looks a flush of this image takes to find everybody who may hold its writes.
///
/// All of them, always: writes acknowledged by a daemon that has died since have to be covered
/// too.
//= spec/blk.md#BLK-17
#[inline]
pub(super) fn sync_holders(map: &PgMap<'_>, image: &ImageConfig) -> u32 {
    match image.backing {
        Backing::Store => 1,
        Backing::Cluster { pool, .. } => map.pool(pool).map_or(1, |pool| pool.pg_count),
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
