//! What the control thread sends: messages of front ends, with their memory and descriptors.

use rustix::event::epoll;
use sluice_core::device::{ControlEvent, ControlReply, DeviceId, QueueId};
use sluice_core::image::ImageId;
use sluice_core::limits::SECTOR_BYTES;
use sluice_core::memory::Region;
use sluice_core::shard::Input;

use super::{Loop, watch};
use crate::foreign::Descriptor;
use crate::mailbox::Message;
use crate::mapping::Mapping;
use crate::store::Resized;

impl Loop<'_> {
    /// Takes in what the control thread has sent; `true` when it wants an end.
    #[inline]
    //= spec/fairness.md#FAIR-10
    pub(super) fn messages(&mut self) -> bool {
        let mut shutdown = false;
        if !self.end.bell.has_rung() {
            return shutdown;
        }
        while let Ok(message) = self.end.messages.try_recv() {
            match message {
                Message::Control { device, event, mappings, fd, answer } => {
                    self.served[device.0 as usize].answer = Some(answer);
                    self.control(device, event, mappings, fd);
                }
                Message::Resized(device, bytes) => {
                    match self.served[device.0 as usize].store.resized(bytes) {
                        Resized::Followed => {
                            let image = ImageId(device.0);
                            self.handle(Input::Resized(image, bytes / SECTOR_BYTES));
                        }
                        Resized::Kept => {
                            tracing::warn!(bytes, "no size for an image; the old one is kept to");
                        }
                        Resized::Undone => {}
                    }
                }
                Message::FrontEndGone(device) => self.handle(Input::FrontEndGone(device)),
                Message::Shutdown => {
                    shutdown = true;
                    self.handle(Input::Shutdown);
                }
            }
            self.effects();
            self.trace();
        }
        shutdown
    }

    /// A front end's message: mappings get their numbers, descriptors their places.
    fn control(
        &mut self,
        device: DeviceId,
        mut event: ControlEvent,
        mappings: Vec<Mapping>,
        fd: Option<Descriptor>,
    ) {
        let ids: Vec<_> = mappings.into_iter().map(|m| self.mem.insert(m)).collect();
        match &mut event {
            ControlEvent::SetMemTable(regions) => {
                for (region, &id) in regions.iter_mut().zip(&ids) {
                    region.id = id;
                }
            }
            ControlEvent::AddMemRegion(Region { id, .. })
            | ControlEvent::SetInflight { region: id, .. }
            | ControlEvent::SetLogBase { region: id, .. } => {
                *id = *ids.first().expect("a region comes with its mapping");
            }
            _ => {}
        }
        let place = Place::of(&event);
        self.note_base(device, &event);
        self.handle(Input::Control(device, event));
        let refused =
            matches!(self.shard.device(device).pending_reply(), Some(ControlReply::Refused(_)));
        if refused {
            ids.into_iter().for_each(|id| self.mem.remove(id));
        } else if let Some(place) = place {
            self.place(device, place, fd);
        }
    }

    fn place(&mut self, device: DeviceId, place: Place, fd: Option<Descriptor>) {
        if let Place::Kick(index) = place
            && let Ok(index) = u16::try_from(index)
        {
            self.forget_kick(device, index);
            if fd.is_none() {
                self.unkicked.push(QueueId { device, index });
            }
        }
        let served = &mut self.served[device.0 as usize];
        let fd = fd.filter(|_| !served.cut_off);
        let queues = &mut served.queues;
        let (Place::Kick(index) | Place::Call(index) | Place::Err(index)) = place;
        let Some(fds) = queues.get_mut(index as usize) else { return };
        match place {
            Place::Kick(_) => {
                if let Some(fd) = &fd {
                    let data = u64::from(device.0) << 32 | u64::from(index);
                    if let Err(error) = watch(&self.poller, fd, data) {
                        tracing::error!(%error, "cannot watch a kick descriptor");
                    }
                }
                fds.kick = fd;
            }
            Place::Call(_) => fds.call = fd,
            Place::Err(_) => fds.err = fd,
        }
    }

    pub(super) fn forget_kick(&mut self, device: DeviceId, index: u16) {
        self.unkicked.retain(|&id| id != QueueId { device, index });
        let queue = self.served[device.0 as usize].queues.get_mut(usize::from(index));
        if let Some(kick) = queue.and_then(|queue| queue.kick.take()) {
            let _ = epoll::delete(&self.poller, &kick);
        }
    }
}

/// Which descriptor of a queue a message is about.
#[derive(Clone, Copy)]
enum Place {
    Kick(u32),
    Call(u32),
    Err(u32),
}

impl Place {
    fn of(event: &ControlEvent) -> Option<Self> {
        match *event {
            ControlEvent::SetVringKick { index } => Some(Self::Kick(index)),
            ControlEvent::SetVringCall { index } => Some(Self::Call(index)),
            ControlEvent::SetVringErr { index } => Some(Self::Err(index)),
            _ => None,
        }
    }
}
