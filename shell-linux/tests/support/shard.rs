//! A shard thread whose store answers at once, or when it is told to.

use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sluice_core::device::{ControlEvent, ControlReply, DeviceConfig, DeviceId};
use sluice_core::image::{Backing, ImageConfig, ImageId};
use sluice_core::memory::Region;
use sluice_core::op::{Op, OpKind, Reply};
use sluice_core::shard::{Budget, Effect, Granted, Input, Shard};
use sluice_core::time::Instant;
use sluice_linux::foreign::Descriptor;
use sluice_linux::mailbox::{Message, News, ShardEnd};
use sluice_linux::mapping::{Mapping, Mappings};
use sluice_sim::arena::{Arena, Capacity};

/// Queues of each disk.
pub(crate) const QUEUES: u16 = 4;

/// Lets a test keep operations from ending.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    held: AtomicBool,
    refused: AtomicBool,
    waiting: AtomicU32,
    mappings: AtomicU32,
    turns: AtomicU32,
    watcher: Mutex<Option<Watcher>>,
}

/// Sees a front end's message when the shard does, before anything is done for it.
struct Watcher(Box<dyn FnMut(&ControlEvent) + Send>);

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watcher")
    }
}

impl Hold {
    pub(crate) fn keep(&self) {
        self.held.store(true, Ordering::SeqCst);
    }

    pub(crate) fn release(&self) {
        self.held.store(false, Ordering::SeqCst);
    }

    /// Somebody else has the image, or not any more; to be said before it is asked for.
    pub(crate) fn refuse(&self, refused: bool) {
        self.refused.store(refused, Ordering::SeqCst);
    }

    /// Has every message of front ends seen by somebody from now on.
    pub(crate) fn watch(&self, watcher: impl FnMut(&ControlEvent) + Send + 'static) {
        *self.watcher.lock().unwrap() = Some(Watcher(Box::new(watcher)));
    }

    /// Waits until an operation is being kept.
    pub(crate) fn wait(&self) {
        while self.waiting.load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Mappings of the shard, after everything that was sent before has had its turn.
    pub(crate) fn mappings(&self) -> u32 {
        let begun = self.turns.load(Ordering::SeqCst);
        while self.turns.load(Ordering::SeqCst).wrapping_sub(begun) < 2 {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.mappings.load(Ordering::SeqCst)
    }
}

/// Who waits for an answer, and what is signalled, by device.
#[derive(Default)]
struct Served {
    answer: Option<Sender<ControlReply>>,
    kicks: Vec<(u32, Descriptor)>,
    calls: Vec<(u32, Descriptor)>,
    errs: Vec<(u32, Descriptor)>,
}

/// Runs until told to shut down.
pub(crate) fn run(end: &ShardEnd, disks: usize, hold: &Hold) {
    let mut arena = Arena::new(Capacity {
        images: 1,
        devices: disks,
        queues: 64,
        requests: 64,
        parts: 65,
        groups: 0,
    });
    let mut shard = Shard::new(arena.storage());
    let image = shard
        .add_image(ImageConfig {
            backing: Backing::Store,
            capacity_sectors: 2048,
            block_bytes: 512,
            read_only: false,
            discard: true,
            write_zeroes: true,
            poisoned: false,
            in_turn: false,
        })
        .expect("room for an image");
    for _ in 0..disks {
        let config = DeviceConfig { image, serial: [0; 20], queues: QUEUES };
        shard.add_device(config).expect("room for each disk");
    }
    let served = (0..disks).map(|_| Served::default()).collect();
    Turns { shard, mem: Mappings::default(), served, held: Vec::new(), end }.run(hold);
}

struct Turns<'a> {
    shard: Shard<'a>,
    mem: Mappings,
    served: Vec<Served>,
    held: Vec<Op>,
    end: &'a ShardEnd,
}

impl Turns<'_> {
    fn run(&mut self, hold: &Hold) {
        loop {
            while let Ok(message) = self.end.messages.try_recv() {
                match message {
                    Message::Control { device, event, mappings, fd, answer } => {
                        if let Some(Watcher(see)) = &mut *hold.watcher.lock().unwrap() {
                            see(&event);
                        }
                        self.served[device.0 as usize].answer = Some(answer);
                        self.control(device, event, mappings, fd);
                    }
                    Message::Resized(device, bytes) => {
                        self.handle(Input::Resized(ImageId(device.0), bytes / 512));
                    }
                    Message::FrontEndGone(device) => self.handle(Input::FrontEndGone(device)),
                    Message::Shutdown => return,
                }
                self.effects(hold);
            }
            self.shard.poll_queues(&self.mem, Budget::of_turn(4));
            while let Some(op) = self.shard.poll_op() {
                self.held.push(op);
            }
            let held = hold.held.load(Ordering::SeqCst);
            for op in if held { Vec::new() } else { std::mem::take(&mut self.held) } {
                let moves = matches!(op.kind, OpKind::Read | OpKind::Write);
                let result = if moves { i64::try_from(op.len).unwrap() } else { 0 };
                self.shard.handle_reply(&Reply { id: op.id, result, version: 0 });
            }
            hold.waiting.store(u32::try_from(self.held.len()).unwrap(), Ordering::SeqCst);
            self.shard.publish(&self.mem);
            while let Some(queue) = self.shard.poll_notify() {
                let calls = &self.served[queue.device.0 as usize].calls;
                for (_, call) in calls.iter().filter(|(index, _)| *index == u32::from(queue.index))
                {
                    let _ = rustix::io::write(call, &1_u64.to_ne_bytes());
                }
            }
            self.effects(hold);
            let mappings = u32::try_from(self.mem.iter().count()).unwrap();
            hold.mappings.store(mappings, Ordering::SeqCst);
            hold.turns.fetch_add(1, Ordering::SeqCst);
            self.sleep();
        }
    }

    /// Until there are messages, or for a moment: guests are looked after by polling.
    fn sleep(&self) {
        let mut bell = [PollFd::from_borrowed_fd(self.end.bell.as_fd(), PollFlags::IN)];
        let moment = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let _ = poll(&mut bell, Some(&moment));
        self.end.bell.clear();
    }

    fn handle(&mut self, input: Input) {
        self.shard.handle(Instant(0), &self.mem, input).expect("no cluster");
    }

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
                regions.iter_mut().for_each(|region| region.id = ids[region.id.0 as usize]);
            }
            ControlEvent::AddMemRegion(Region { id, .. })
            | ControlEvent::SetInflight { region: id, .. }
            | ControlEvent::SetLogBase { region: id, .. } => *id = ids[0],
            _ => {}
        }
        let served = &mut self.served[device.0 as usize];
        let place = match event {
            ControlEvent::SetVringKick { index } => Some((index, &mut served.kicks)),
            ControlEvent::SetVringCall { index } => Some((index, &mut served.calls)),
            ControlEvent::SetVringErr { index } => Some((index, &mut served.errs)),
            _ => None,
        };
        self.shard
            .handle(Instant(0), &self.mem, Input::Control(device, event))
            .expect("no cluster");
        if let Some(ControlReply::Refused(_)) = self.shard.device(device).pending_reply() {
            ids.into_iter().for_each(|id| self.mem.remove(id));
        } else if let Some((index, fds)) = place {
            fds.retain(|(other, _)| *other != index);
            fds.extend(fd.map(|fd| (index, fd)));
        }
    }

    fn effects(&mut self, hold: &Hold) {
        while let Some(effect) = self.shard.poll_effect() {
            match effect {
                Effect::Reply(device, reply) => {
                    match self.served[device.0 as usize].answer.take() {
                        Some(answer) => drop(answer.send(reply)),
                        None => self.end.tell(News::Late(device, reply)),
                    }
                }
                Effect::Unmap(region) => self.mem.remove(region),
                Effect::Capture(image) => {
                    let refused = hold.refused.load(Ordering::SeqCst);
                    let granted = if refused { Granted::No } else { Granted::Yes };
                    self.handle(Input::Capture(image, granted));
                }
                Effect::ConfigChanged(device) => self.end.tell(News::ConfigChanged(device)),
                Effect::Evict(device) => self.end.tell(News::Evict(device)),
                Effect::Left(device) => {
                    self.served[device.0 as usize] = Served::default();
                    self.end.tell(News::Left(device));
                }
                Effect::Release(_) | Effect::QueueBroken(..) | Effect::Poisoned(_) => {}
            }
        }
    }
}
