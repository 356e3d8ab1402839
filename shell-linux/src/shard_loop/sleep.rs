//! Waiting without looking.

use std::time::Instant as Clock;

use rustix::event::epoll;
use rustix::time::Timespec;
use sluice_core::device::{DeviceId, QueueId};

use super::kicks::POLL_INTERVAL;
use super::{Loop, MAILBOX, STORE};

impl Loop<'_> {
    /// Sleeps until a driver, the control thread or a store has something.
    pub(super) fn sleep(&mut self) -> anyhow::Result<()> {
        let due = self.capture_due.into_iter().chain(self.empty_due).min();
        let left = due.map(|due| due.saturating_duration_since(Clock::now()));
        let poll = (!self.unkicked.is_empty()).then_some(POLL_INTERVAL);
        let left = left.into_iter().chain(poll).min();
        let timeout = left.map(Timespec::try_from).transpose()?;
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 64];
        let count = match epoll::wait(&self.poller, &mut events, timeout.as_ref()) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            match event.data.u64() {
                MAILBOX => self.end.bell.clear(),
                STORE => {}
                queue => {
                    #[expect(clippy::cast_possible_truncation, reason = "packed by place")]
                    let (device, index) = (DeviceId((queue >> 32) as u32), queue as u16);
                    self.kicked(QueueId { device, index });
                }
            }
        }
        self.poll_unkicked();
        self.find_empty_kicks();
        self.retry_captures();
        Ok(())
    }
}
