//! What the core wants done.

use std::time::Instant as Clock;

use sluice_core::device::{ControlReply, QueueId};
use sluice_core::image::ImageId;
use sluice_core::shard::{Effect, Granted, Input};
use sluice_core::trace::TraceEvent;

use super::kicks::Kicks;
use super::signals::Signal;
use super::{CAPTURE_RETRY, CAPTURE_RETRY_SOON, DEATH, Loop, QueueFds, Refused};
use crate::mailbox::News;
use crate::store::Captured;

impl Loop<'_> {
    /// Does what the core wants done; `false` when it wants nothing.
    #[inline]
    pub(super) fn effects(&mut self) -> bool {
        let mut any = false;
        while let Some(effect) = self.shard.poll_effect() {
            any = true;
            self.effect(effect);
        }
        any
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Reply(device, reply) => {
                if let ControlReply::VringBase { index, .. } = reply {
                    self.forget_kick(device, index);
                }
                match self.served[device.0 as usize].answer.take() {
                    // A control thread that has ended asks for nothing any more.
                    Some(answer) => drop(answer.send(reply)),
                    None => self.end.tell(News::Late(device, reply)),
                }
            }
            Effect::Unmap(region) => self.mem.remove(region),
            Effect::Capture(image) => self.capture(image),
            Effect::Release(image) => self.served[image.0 as usize].store.release(),
            Effect::QueueBroken(queue, fault) => {
                tracing::warn!(
                    device = queue.device.0,
                    queue = queue.index,
                    ?fault,
                    "the guest broke its queue; it is served no more until it is set up anew"
                );
                self.signal(queue, Signal::Broken);
            }
            Effect::ConfigChanged(device) => self.end.tell(News::ConfigChanged(device)),
            Effect::Evict(device) => self.end.tell(News::Evict(device)),
            Effect::Left(device) => {
                for index in 0..self.served[device.0 as usize].queues.len() {
                    self.forget_kick(device, u16::try_from(index).unwrap_or(u16::MAX));
                    self.served[device.0 as usize].queues[index] = QueueFds::default();
                }
                self.served[device.0 as usize].kicks = Kicks::default();
                self.served[device.0 as usize].cut_off = false;
                self.end.tell(News::Left(device));
            }
            Effect::Poisoned(image) => {
                if let Err(error) = self.served[image.0 as usize].store.poison() {
                    tracing::error!(%error, "cannot mark the image as damaged");
                }
            }
        }
    }

    //= spec/lifecycle.md#LIF-11
    fn capture(&mut self, image: ImageId) {
        let served = &mut self.served[image.0 as usize];
        match served.store.capture() {
            Captured::Yes => {
                served.refused = None;
                self.handle(Input::Capture(image, Granted::Yes));
            }
            refusal => {
                // A predecessor that was killed lets go within milliseconds; that is no news.
                let now = Clock::now();
                let refused = served.refused.get_or_insert(Refused { since: now, told: false });
                let alive =
                    matches!(refusal, Captured::Held { alive: true, .. } | Captured::Failed(_));
                let soon = refused.since.elapsed() < if alive { CAPTURE_RETRY } else { DEATH };
                if !soon && !core::mem::replace(&mut refused.told, true) {
                    tracing::warn!(image = image.0, "I/O waits: {refusal}");
                }
                let due = now + if soon { CAPTURE_RETRY_SOON } else { CAPTURE_RETRY };
                self.capture_due = Some(self.capture_due.map_or(due, |other| other.min(due)));
            }
        }
    }

    pub(super) fn retry_captures(&mut self) {
        if self.capture_due.is_none_or(|due| Clock::now() < due) {
            return;
        }
        self.capture_due = None;
        for index in 0..self.served.len() {
            if self.served[index].refused.is_some() {
                self.capture(ImageId(u32::try_from(index).unwrap_or(u32::MAX)));
            }
        }
    }

    #[cold]
    pub(super) fn find_lost_memory(&mut self) {
        let lost: Vec<_> = self.mem.iter().filter(|(_, m)| m.is_lost()).map(|(id, _)| id).collect();
        for region in lost {
            tracing::error!("a front end took its guest's memory back; its disk is cut off");
            self.handle(Input::MemoryLost(region));
        }
    }

    pub(super) fn trace(&mut self) {
        while let Some(event) = self.shard.poll_trace() {
            tracing::debug!(?event);
            //= spec/recovery.md#REC-15
            if let TraceEvent::Unrecorded(QueueId { device, index }) = event {
                tracing::warn!(
                    device = device.0,
                    queue = index,
                    "served without a record of what is in flight: the front end keeps no \
                     inflight region, or one without room for this queue that another program \
                     or version made; stop the virtual machine and start it again to have one \
                     made that fits"
                );
            }
        }
    }
}
