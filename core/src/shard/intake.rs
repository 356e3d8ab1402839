//! From rings to requests: whose turn it is, and how many chains are taken.

use super::{Shard, Turn, dirty};
use crate::blk::{BlkRequest, Limits, Range, Status, Verdict, parse};
use crate::device::{Device, QueueId};
use crate::image::{Backing, Capture, CaptureNews, ImageConfig};
use crate::inflight::Inflight;
use crate::limits::{
    EMPTY_VISITS_MAX, QUEUE_BATCH, RANGES_MAX, SEGMENTS_MAX, TURN_CHAINS, TURN_COST,
};
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
    /// What the operations of one turn may cost, in bytes: see `limits::TURN_COST`.
    pub cost: u32,
    /// Armed queues looked at.
    ///
    /// While a shard polls, this is how it finds work on queues that have been idle: a few at
    /// each poll, so that a hundred idle disks cost what a few do. 0 when their kicks are heard.
    pub samples: u32,
}

impl Budget {
    /// What a thread that nothing hurries gives a turn.
    pub const fn of_turn(samples: u32) -> Self {
        Self { chains: TURN_CHAINS, cost: TURN_COST, samples }
    }
}

/// What one poll did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Chains taken.
    pub chains: u32,
    /// Devices that have operations to hand out in this turn.
    pub ready: u32,
    /// Queues that broke, some of whose chains may have been taken before.
    pub broken: u32,
}

impl Work {
    /// Whether anything follows from it.
    #[must_use]
    #[inline]
    pub const fn is_some(&self) -> bool {
        self.chains | self.ready | self.broken != 0
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
            let device = self.queues[index].device;
            self.devices[device].share.armed.remove(&mut self.queues, index);
            self.activate(mem, index);
        }
    }

    /// Begins a turn: takes chains from the active queues of the devices that have it, after a look
    /// at some armed ones.
    ///
    /// Devices take turns, and so do the queues of each: what this turn has no room for comes first
    /// in the next.
    //= spec/limits.md#LIM-3
    //= spec/limits.md#LIM-4
    pub fn poll_queues(&mut self, mem: &impl SharedMemory, budget: Budget) -> Work {
        let mut work = Work::default();
        let broken = self.counters.broken_queues;
        if !self.stopping {
            for _ in 0..budget.samples.min(self.armed.len()) {
                self.sample(mem);
            }
        }
        self.begin_turn(budget);
        self.give_turns(mem, budget, &mut work);
        work.broken = u32::try_from(self.counters.broken_queues - broken).unwrap_or(u32::MAX);
        work
    }

    /// Asks every active queue's driver for notifications.
    //= spec/virtqueue.md#VQ-13
    //= spec/limits.md#LIM-3
    pub fn arm(&mut self, mem: &impl SharedMemory) -> Idle {
        let mut idle = Idle::Idle;
        for _ in 0..self.round.len() {
            let Some(device) = self.round.pop(&mut self.devices) else { break };
            self.round.push(&mut self.devices, device);
            // It waits for its next turn alone.
            //= spec/fairness.md#FAIR-9
            if self.has_ops(device) && self.has_places(device) {
                idle = Idle::More;
            }
            // What cannot be taken now is found when something has ended, and that wakes the shard.
            if !self.stopping && self.room(device) > 0 && !self.arm_device(mem, device) {
                idle = Idle::More;
            }
        }
        idle
    }

    /// Asks a device's drivers for notifications; `false` when a queue has work after all.
    fn arm_device(&mut self, mem: &impl SharedMemory, device: u32) -> bool {
        let mut armed = true;
        for _ in 0..self.devices[device].share.active.len() {
            let Some(index) = self.devices[device].share.active.first() else { break };
            armed &= self.arm_queue(mem, index);
        }
        armed
    }

    /// Whether any queue is served at all: if not, only the control side can bring work.
    #[must_use]
    pub fn has_queues(&self) -> bool {
        let active = |(_, device): (u32, &Device)| !device.share.active.is_empty();
        let armed = |(_, device): (u32, &Device)| !device.share.armed.is_empty();
        self.round.iter(&self.devices).any(active) || self.armed.iter(&self.devices).any(armed)
    }

    fn sample(&mut self, mem: &impl SharedMemory) {
        let Some(index) = self.next_armed() else { return };
        let available = match &mut self.queues[index].ring {
            Some(ring) => ring.available(mem),
            None => Ok(0),
        };
        if available == Ok(0) {
            let device = self.queues[index].device;
            self.devices[device].share.armed.push(&mut self.queues, index);
        } else {
            self.activate(mem, index);
        }
    }

    pub(super) fn count_empty(&mut self, mem: &impl SharedMemory, index: u32) {
        let queue = &mut self.queues[index];
        queue.empty = queue.empty.saturating_add(1);
        if queue.empty >= EMPTY_VISITS_MAX {
            let active = &mut self.devices[queue.device].share.active;
            active.remove(&mut self.queues, index);
            active.push_front(&mut self.queues, index);
            self.arm_queue(mem, index);
        }
    }

    /// Arms the first active queue of its device; `false` when it has work after all and stays
    /// active.
    fn arm_queue(&mut self, mem: &impl SharedMemory, index: u32) -> bool {
        let owner = self.queues[index].device;
        let first = self.devices[owner].share.active.pop(&mut self.queues);
        debug_assert_eq!(first, Some(index));
        let queue = &mut self.queues[index];
        queue.empty = 0;
        let device = &self.devices[owner];
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
                self.devices[owner].share.armed.push(&mut self.queues, index);
                self.list_armed(owner);
                true
            }
            Ok(true) => {
                self.devices[owner].share.active.push(&mut self.queues, index);
                false
            }
            Err(fault) => {
                self.devices[owner].share.active.push(&mut self.queues, index);
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
        let owner = queue.device;
        let device = &self.devices[owner];
        let disarmed = match &mut queue.ring {
            Some(ring) => disarm(mem, device, ring),
            None => Ok(()),
        };
        self.devices[owner].share.active.push(&mut self.queues, index);
        self.list_round(owner);
        if let Err(fault) = disarmed {
            self.break_queue(index, fault);
        }
    }

    /// Takes a queue out of its turns.
    pub(super) fn deactivate(&mut self, index: u32) {
        let queue = &mut self.queues[index];
        let turn = core::mem::replace(&mut queue.turn, Turn::None);
        let share = &mut self.devices[queue.device].share;
        let _ = match turn {
            Turn::None => false,
            Turn::Active => share.active.remove(&mut self.queues, index),
            Turn::Armed => share.armed.remove(&mut self.queues, index),
        };
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
    ///
    /// A function of its own, once a batch: inlined, its registers are spilt for each chain.
    //= spec/limits.md#LIM-1
    #[inline(never)]
    pub(super) fn visit(
        &mut self,
        mem: &impl SharedMemory,
        index: u32,
        limit: u32,
    ) -> Result<u32, QueueFault> {
        let queue = &mut self.queues[index];
        let owner = queue.device;
        let device = &mut self.devices[owner];
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
        let limit = limit.min(QUEUE_BATCH.into());
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
            index: owner,
            holders: sync_holders(&self.map, &image.config),
            unanswerable: 0,
        };
        image.keep();
        let mut cut = intake.device.share.cut;
        let ready = match image.capture {
            Capture::None | Capture::Asked if !planted(Fault::CaptureSkipped) => &mut image.waiting,
            _ => &mut cut,
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
        let asks = image.capture == Capture::None && ready.len() > waiting;
        intake.device.share.cut = cut;
        if asks {
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
            self.list_cut(slot);
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
    index: u32,
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
            device: self.index,
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
