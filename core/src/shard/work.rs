//! From requests to operations, and from replies to used rings.

use super::intake::sync_holders;
use super::share::{cost, weight};
use super::{PUBLISH, Shard, dirty};
use crate::blk::Status;
use crate::device::{Phase, QueueId};
use crate::image::{Backing, ImageId};
use crate::memory::SharedMemory;
use crate::op::{Op, OpId, OpKind, Reply, Target};
use crate::placement::{PgMap, PgNum, PoolConfig};
use crate::planted::{Fault, planted};
use crate::request::{Cursor, Part, Pieces, Request, RequestKind, Slice};
use crate::slots::{Fifo, Slots};
use crate::trace::TraceEvent;
use crate::virtqueue::QueueFault;

/// Where a slice goes.
enum Route {
    To(Target, u64),
    /// Nobody serves it now.
    Nowhere,
    /// Somebody has been asked already: nothing to do.
    Covered,
}

impl Shard<'_> {
    /// The next operation to carry out; `None` when there is none in this turn.
    ///
    /// Poll again after replies, new requests and cluster updates. What a turn may cost is said by
    /// [`poll_queues`](Self::poll_queues), which begins it.
    #[inline]
    pub fn poll_op(&mut self) -> Option<Op> {
        while let Some(slot) = self.next_cut() {
            if let Some(op) = self.cut_part(slot) {
                return Some(op);
            }
        }
        None
    }

    /// The payload of an operation, to be asked for when it is moved: pieces of a front end
    /// that has gone since are skipped.
    ///
    /// # Panics
    /// When the operation has been replied to.
    #[must_use]
    #[inline]
    pub fn pieces(&self, id: OpId) -> Pieces<'_> {
        let index = self.parts.find(id).expect("an operation under way");
        let part = &self.parts[index];
        let request = &self.requests[part.request];
        Pieces::new(request, part, &self.segments[part.request as usize])
    }

    /// Takes in the end of an operation, whose payload has been moved by now.
    ///
    /// A reply to nothing under way is counted and dropped.
    #[inline]
    pub fn handle_reply(&mut self, reply: &Reply) {
        let Some(part) = self.parts.remove(reply.id) else {
            self.counters.stale_replies += 1;
            return;
        };
        let mut outcome = part.outcome(reply);
        if part.kind == OpKind::Sync {
            outcome = self.synced(ImageId(self.requests[part.request].image), outcome);
        }
        let request = &mut self.requests[part.request];
        self.devices[request.device].share.discharge(weight(part.kind, part.len));
        request.join(outcome);
        if request.is_done() {
            if !request.listed {
                self.complete(part.request);
            }
        } else if !request.listed && request.wants_cut() {
            request.listed = true;
            self.list_cut(part.request);
        }
    }

    /// Gives back every chain whose request has ended, one batch a queue.
    #[inline]
    pub fn publish(&mut self, mem: &impl SharedMemory) {
        while let Some(index) = self.publishing.pop(&mut self.queues) {
            self.publish_queue(mem, index);
        }
    }

    /// The next queue whose driver is to be notified.
    #[inline]
    pub fn poll_notify(&mut self) -> Option<QueueId> {
        let index = self.notifying.pop(&mut self.queues)?;
        let queue = &mut self.queues[index];
        queue.notifying = false;
        self.counters.notifications += 1;
        Some(queue.id())
    }

    /// Cuts the next part of a request that was in the list for it.
    #[inline]
    fn cut_part(&mut self, slot: u32) -> Option<Op> {
        let request = &mut self.requests[slot];
        let image = ImageId(request.image);
        let config = &self.images[image.0].config;
        let backing = &config.backing;
        let cut = match *backing {
            Backing::Store => Some(self.turn.cut(config.in_turn)),
            Backing::Cluster { pool, .. } => self.map.pool(pool).map(PoolConfig::cut),
        };
        let Some(cut) = cut else {
            self.unplaced.push(&mut self.requests, slot);
            return None;
        };
        let Some(slice) = request.peek_slice(cut, || &self.ranges[slot as usize]) else {
            request.listed = false;
            if request.is_done() {
                self.complete(slot);
            }
            return None;
        };
        // It was taken before a sync failed.
        //= spec/blk.md#BLK-16
        if config.poisoned && slice.kind != OpKind::Read && !planted(Fault::PoisonIgnored) {
            request.listed = false;
            request.fail(Status::IoErr);
            if request.is_done() {
                self.complete(slot);
            }
            return None;
        }
        let (target, inode) = match route(&self.map, image, backing, request.cursor.step, &slice) {
            Route::To(target, inode) => (target, inode),
            Route::Nowhere => {
                self.unplaced.push(&mut self.requests, slot);
                return None;
            }
            Route::Covered => {
                request.cursor.step += 1;
                self.list_cut(slot);
                return None;
            }
        };
        let part = Part { request: slot, skip: slice.skip, len: slice.len, kind: slice.kind };
        let weight = weight(slice.kind, slice.len);
        let cost = cost(weight, config.in_turn);
        let id = self.parts.insert(part)?;
        request.advance(&slice);
        request.listed = request.wants_cut();
        self.devices[request.device].share.charge(weight, cost);
        if request.listed {
            self.list_cut(slot);
        }
        self.counters.ops += 1;
        Some(Op {
            id,
            target,
            kind: slice.kind,
            inode,
            offset: slice.offset,
            len: slice.len,
            version: 0,
            meta_revision: 0,
        })
    }

    /// The map has changed: what found nobody may find somebody now, and a flush that is still
    /// looking begins again. Who it has asked says nothing about where groups are by now, and
    /// before the map was there it did not even know how many there are.
    //= spec/blk.md#BLK-17
    pub(super) fn look_again(&mut self) {
        let mut unplaced = core::mem::replace(&mut self.unplaced, Fifo::EMPTY);
        self.list_all(&mut unplaced);
        for request in self.requests.used_mut() {
            if request.kind == RequestKind::Flush && !request.cursor.is_done() {
                let config = &self.images[request.image].config;
                request.cursor = Cursor::steps(sync_holders(&self.map, config));
            }
        }
    }

    /// What a sync's end means for its flush. After one has failed, what was written since the
    /// last good one may be lost; another that succeeds proves nothing, not even one that was
    /// under way at the same time.
    //= spec/blk.md#BLK-16
    fn synced(&mut self, id: ImageId, outcome: Status) -> Status {
        let image = &mut self.images[id.0];
        if image.config.poisoned {
            return Status::IoErr;
        }
        if outcome != Status::Ok {
            image.config.poisoned = true;
            image.newly_poisoned = true;
            self.trace.push(TraceEvent::Poisoned(id));
            self.list_image(id.0);
        }
        outcome
    }

    #[inline]
    fn publish_queue(&mut self, mem: &impl SharedMemory, index: u32) {
        let queue = &mut self.queues[index];
        queue.publishing = false;
        let mut done = core::mem::replace(&mut queue.done, Fifo::EMPTY);
        let device_index = queue.device;
        let device = &mut self.devices[device_index];
        let (mut left, mut logged) = (Fifo::EMPTY, Ok(()));
        if queue.leaving {
            (done, left) = part_orphans(&mut self.requests, done);
            if !planted(Fault::LeftUnlogged) {
                logged = dirty::log_landings(mem, device, &self.requests, self.segments, &left);
            }
        }
        let count = done.len();
        //= spec/lifecycle.md#LIF-13
        //= spec/inflight.md#INF-8
        let published = match &mut queue.ring {
            _ if count == 0 => Ok(false),
            Some(ring) if device.phase == Phase::Open || planted(Fault::PublishedAfterGone) => {
                self.counters.batches += 1;
                let inflight = &mut queue.inflight;
                dirty::publish(mem, device, ring, inflight, &self.requests, self.segments, &done)
            }
            _ => Ok(false),
        };
        done.append(&mut self.requests, &mut left);
        let ended = done.len();
        queue.live -= ended;
        device.live -= ended;
        self.counters.completions += u64::from(ended);
        // One of these may have been the last in a region.
        let retired = device.map.has_retired();
        while let Some(slot) = done.pop(&mut self.requests) {
            self.counters.errors += u64::from(self.requests[slot].status != Status::Ok);
            self.requests.release(slot);
        }
        if published == Ok(true) {
            self.notify(index);
        }
        if retired {
            self.list_device(device_index);
        }
        if let Err(fault) = published.and(logged.map_err(QueueFault::from)) {
            self.break_queue(index, fault);
            // What is marked is not given back: whoever comes next has to see that.
            self.queues[index].inflight = None;
        }
        if self.queues[index].live == 0 {
            self.drained(mem, device_index, index);
        }
    }

    /// Lists a queue for the next notifications.
    #[inline]
    pub(super) fn notify(&mut self, index: u32) {
        if !self.queues[index].notifying {
            self.queues[index].notifying = true;
            self.notifying.push(&mut self.queues, index);
        }
    }

    /// Forgets that a queue has something to publish.
    pub(super) fn unpublish(&mut self, index: u32) {
        if core::mem::take(&mut self.queues[index].publishing) {
            let mut list: Fifo<PUBLISH> = self.publishing;
            list.remove(&mut self.queues, index);
            self.publishing = list;
        }
        if core::mem::take(&mut self.queues[index].notifying) {
            let mut list = self.notifying;
            list.remove(&mut self.queues, index);
            self.notifying = list;
        }
    }
}

/// What of a queue's requests is given back, and what is left to be taken again.
//= spec/lifecycle.md#LIF-17
#[cold]
fn part_orphans(requests: &mut Slots<'_, Request, 1>, mut ended: Fifo<0>) -> (Fifo<0>, Fifo<0>) {
    let (mut done, mut left) = (Fifo::EMPTY, Fifo::EMPTY);
    while let Some(slot) = ended.pop(requests) {
        let list = if requests[slot].orphaned { &mut left } else { &mut done };
        list.push(requests, slot);
    }
    (done, left)
}

/// Who a slice of an image goes to. A flush looks at one placement group at each `step`.
//= spec/placement.md#PLC-6
#[inline]
fn route(map: &PgMap<'_>, image: ImageId, backing: &Backing, step: u32, slice: &Slice) -> Route {
    let (cluster, pool, inode) = match *backing {
        Backing::Store => return Route::To(Target::Store(image), 0),
        Backing::Cluster { cluster, pool, inode } => (cluster, pool, inode),
    };
    let pg = match slice.kind {
        OpKind::Sync => PgNum(step + 1),
        _ => map.pool(pool).map_or(PgNum(0), |pool| pool.pg(slice.offset)),
    };
    let Some(osd) = map.primary(pool, pg) else { return Route::Nowhere };
    let earlier = |pg| map.primary(pool, PgNum(pg)) == Some(osd);
    if slice.kind == OpKind::Sync && (1..pg.0).any(earlier) {
        return Route::Covered;
    }
    Route::To(Target::Osd(cluster, osd), inode)
}
