//! Kicks: rings that are served without any, and kicks behind which there is nothing.

use std::time::{Duration, Instant as Clock};

use sluice_core::device::{ControlEvent, DeviceId, QueueId};

use super::Loop;

/// How long a shard sleeps while it has a ring without a kick descriptor: that one is polled.
pub(super) const POLL_INTERVAL: Duration = Duration::from_micros(100);
/// How long a front end's first kick may find nothing before that is worth a word.
const EMPTY: Duration = Duration::from_secs(3);

/// What a device's kicks have come to since its front end came.
#[derive(Debug, Default)]
pub(super) struct Kicks {
    /// Since when they have been coming while no ring had anything.
    since: Option<Clock>,
    /// Whether a ring has, or had before this front end came.
    pub(super) found: bool,
}

impl Loop<'_> {
    /// A driver has notified its queue.
    pub(super) fn kicked(&mut self, id: QueueId) {
        let kicks = &mut self.served[id.device.0 as usize].kicks;
        if !kicks.found && kicks.since.is_none() {
            let now = Clock::now();
            kicks.since = Some(now);
            self.empty_due.get_or_insert(now + EMPTY);
        }
        self.stirred = true;
        self.shard.handle_kick(&self.mem, id);
    }

    /// Looks at the rings that nobody kicks.
    //= spec/host.md#HOST-8
    pub(super) fn poll_unkicked(&mut self) {
        for &id in &self.unkicked {
            self.shard.handle_kick(&self.mem, id);
        }
    }

    /// Notes whether a ring that is set up has been used before.
    pub(super) fn note_base(&mut self, device: DeviceId, event: &ControlEvent) {
        // In packed rings two bits say how often the ring has gone round.
        const INDICES: u32 = 0x7fff_7fff;
        if let ControlEvent::SetVringBase { base, .. } = event {
            self.served[device.0 as usize].kicks.found |= base & INDICES != 0;
        }
    }

    /// Says so where kicks have come for a while and the rings have stayed empty.
    //= spec/host.md#HOST-9
    pub(super) fn find_empty_kicks(&mut self) {
        if self.empty_due.is_none_or(|due| Clock::now() < due) {
            return;
        }
        self.empty_due = None;
        for (device, served) in self.served.iter_mut().enumerate() {
            let Some(since) = served.kicks.since.filter(|_| !served.kicks.found) else { continue };
            let due = since + EMPTY;
            if Clock::now() < due {
                self.empty_due = Some(self.empty_due.map_or(due, |other| other.min(due)));
                continue;
            }
            served.kicks.since = None;
            tracing::warn!(
                device,
                "kicks come, but the rings stay empty: is the guest's memory shared? (QEMU: share=on)"
            );
        }
    }
}
