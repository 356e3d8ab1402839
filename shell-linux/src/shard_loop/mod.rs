//! The thread of one shard: turns of the core, and what they need of Linux.

mod effects;
mod inbox;
mod kicks;
mod patience;
mod signals;
mod sleep;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant as Clock};

use rustix::event::epoll;
use sluice_core::device::{ControlReply, DeviceConfig, QueueId};
use sluice_core::op::{Reply, Target};
use sluice_core::shard::{Budget, Idle, Input, Shard};
use sluice_core::time::Instant;
use sluice_sim::arena::{Arena, Capacity};

use crate::foreign::Descriptor;
use crate::mailbox::ShardEnd;
use crate::mapping::Mappings;
use crate::sigbus;
use crate::store::Store;
use kicks::Kicks;
use patience::Patience;
use signals::{Signal, Signaller};

/// How a shard waits for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// It does not: a core is always looking.
    Busy,
    /// It looks for this long after the last work, then sleeps.
    Adaptive(Duration),
    /// It sleeps when there is nothing to do, unless its last sleep was too short to be worth it.
    Event,
}

/// A disk of a shard.
#[derive(Debug)]
pub struct Disk {
    /// Its bytes.
    pub store: Store,
    /// What `GET_ID` says.
    pub serial: [u8; 20],
    /// Queues it has.
    pub queues: u16,
}

/// How a shard is set up.
#[derive(Clone, Copy, Debug)]
pub struct ShardOptions {
    /// How it waits.
    pub poll: Poll,
    /// The CPU it is pinned to.
    pub cpu: Option<usize>,
}

/// Armed queues looked at in one polling turn.
const SAMPLES_PER_TURN: u32 = 2;
/// Ends of operations that are taken in from one store in one turn.
const REPLIES_PER_TURN: u32 = 64;
/// How long a capture that was refused is left alone, and how long if it may end by itself.
const CAPTURE_RETRY: Duration = Duration::from_millis(100);
const CAPTURE_RETRY_SOON: Duration = Duration::from_millis(2);
/// How long the last I/O of a process that was killed may take before it is worth a word.
const DEATH: Duration = Duration::from_secs(1);
/// Queues that one shard serves at once, over all its disks.
const QUEUES: usize = 1024;
/// Requests that one shard has under way at once, over all its disks.
const REQUESTS: usize = 2048;

/// What epoll says of the shard's own descriptors; other numbers are queues.
const MAILBOX: u64 = u64::MAX;
const STORE: u64 = u64::MAX - 1;

/// Runs a shard until it is told to shut down and has nothing under way, or for ever.
///
/// The disks become the devices 0, 1, ... in their order.
///
/// # Errors
/// When the thread cannot be pinned, or epoll or the thread beside it cannot be had.
pub fn run(disks: Vec<Disk>, options: ShardOptions, end: &ShardEnd) -> anyhow::Result<()> {
    if let Some(cpu) = options.cpu {
        crate::cpu::pin(cpu)?;
    }
    let mut arena = Arena::new(Capacity {
        images: disks.len(),
        devices: disks.len(),
        queues: QUEUES,
        requests: REQUESTS,
        parts: REQUESTS + 1,
        groups: 0,
    });
    let mut shard = Shard::new(arena.storage());
    let mut served = Vec::new();
    let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for Disk { store, serial, queues } in disks {
        let image = shard.add_image(store.config()).expect("room for each disk");
        let config = DeviceConfig { image, serial, queues };
        let device = shard.add_device(config).expect("room for each disk");
        debug_assert_eq!(image.0, device.0);
        if let Some(fd) = store.wake_fd() {
            watch(&poller, fd, STORE)?;
        }
        served.push(Served::new(store, queues));
    }
    watch(&poller, &end.bell, MAILBOX)?;
    let mut this = Loop {
        shard,
        mem: Mappings::default(),
        served,
        poller,
        end,
        signaller: Signaller::new()?,
        begun: 0,
        stirred: false,
        capture_due: None,
        unkicked: Vec::new(),
        empty_due: None,
    };
    this.run(options.poll)
}

/// The shell's side of one device and its image.
struct Served {
    store: Store,
    /// Operations that the store has begun.
    begun: u32,
    /// Whether the store has operations to hand to the kernel.
    kick: bool,
    /// Whether the store refused the image at the last try.
    refused: Option<Refused>,
    queues: Vec<QueueFds>,
    kicks: Kicks,
    /// Whether its front end has held this thread up.
    cut_off: bool,
    /// Who waits for the answer to a control message.
    answer: Option<Sender<ControlReply>>,
}

/// The descriptors of one queue.
#[derive(Debug, Default)]
struct QueueFds {
    kick: Option<Descriptor>,
    call: Option<Descriptor>,
    err: Option<Descriptor>,
}

/// An image that the store has refused.
struct Refused {
    since: Clock,
    /// Whether the log has it.
    told: bool,
}

impl Served {
    fn new(store: Store, queues: u16) -> Self {
        Self {
            store,
            begun: 0,
            kick: false,
            refused: None,
            queues: (0..queues).map(|_| QueueFds::default()).collect(),
            kicks: Kicks::default(),
            cut_off: false,
            answer: None,
        }
    }
}

struct Loop<'a> {
    shard: Shard<'a>,
    mem: Mappings,
    /// By device and by image: disks have the same number as both.
    served: Vec<Served>,
    poller: OwnedFd,
    end: &'a ShardEnd,
    signaller: Signaller,
    /// Operations that all stores together have begun.
    begun: u32,
    /// Whether the core was told something since it was last asked what follows.
    stirred: bool,
    /// When a refused capture is tried again.
    capture_due: Option<Clock>,
    /// Rings without a kick descriptor.
    unkicked: Vec<QueueId>,
    /// When it is looked whether kicks have found nothing.
    empty_due: Option<Clock>,
}

impl Loop<'_> {
    fn run(&mut self, poll: Poll) -> anyhow::Result<()> {
        let mut patience = Patience::new(poll);
        let mut stopping = false;
        loop {
            stopping |= self.messages();
            if stopping && self.shard.live() == 0 && self.shard.ops_live() == 0 {
                return Ok(());
            }
            if self.turn() {
                patience.worked();
            } else if self.shard.has_queues() && patience.looks_again() {
                self.retry_captures();
            } else if self.shard.arm(&self.mem) == Idle::Idle {
                self.sleep()?;
                patience.slept();
            }
        }
    }

    /// One turn of the belt; `false` when there was nothing to do.
    #[inline]
    fn turn(&mut self) -> bool {
        let mut worked = self.replies();
        let budget = Budget::of_turn(SAMPLES_PER_TURN);
        worked |= self.shard.poll_queues(&self.mem, budget).is_some();
        if sigbus::any_lost() {
            self.find_lost_memory();
        }
        // Most turns of a shard that polls find nothing, and a request waits for the next one.
        if !worked && !core::mem::take(&mut self.stirred) {
            return false;
        }
        worked |= self.operations();
        // What has to outlive the daemon does so before anybody hears of it.
        //= spec/store.md#STO-34
        worked |= self.effects();
        self.shard.publish(&self.mem);
        while let Some(queue) = self.shard.poll_notify() {
            self.signal(queue, Signal::Used);
        }
        if self.effects() {
            worked = true;
            self.trace();
        }
        worked
    }

    /// What stores have ended since, as much as belongs into one turn.
    #[inline]
    fn replies(&mut self) -> bool {
        let mut any = false;
        if self.begun == 0 {
            return any;
        }
        for served in self.served.iter_mut().filter(|served| served.begun > 0) {
            for _ in 0..REPLIES_PER_TURN {
                let Some(reply) = served.store.reap() else { break };
                served.begun -= 1;
                self.begun -= 1;
                self.shard.handle_reply(&reply);
                any = true;
            }
        }
        any
    }

    /// Hands operations to their stores; many end there and then.
    #[inline]
    fn operations(&mut self) -> bool {
        let mut any = false;
        let mut begun = false;
        while let Some(op) = self.shard.poll_op() {
            any = true;
            let Target::Store(image) = op.target else { continue };
            let served = &mut self.served[image.0 as usize];
            served.kicks.found = true;
            match served.store.submit(&op, self.shard.pieces(op.id), &self.mem) {
                Some(result) => {
                    self.shard.handle_reply(&Reply { id: op.id, result, version: 0 });
                }
                None => {
                    served.begun += 1;
                    self.begun += 1;
                    served.kick = true;
                    begun = true;
                }
            }
        }
        if begun {
            for served in &mut self.served {
                if core::mem::take(&mut served.kick) {
                    served.store.kick();
                }
            }
        }
        any
    }

    fn handle(&mut self, input: Input) {
        self.stirred = true;
        // Only cluster updates can be refused, and this shell has none.
        let _ = self.shard.handle(now(), &self.mem, input);
    }
}

/// Watches a descriptor for what is written to it from now on. Edge-triggered: an eventfd need
/// not be read, each write is an event of its own.
fn watch(poller: &OwnedFd, fd: impl AsFd, data: u64) -> rustix::io::Result<()> {
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(poller, fd, epoll::EventData::new_u64(data), flags)
}

fn now() -> Instant {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Instant(seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0))
}
