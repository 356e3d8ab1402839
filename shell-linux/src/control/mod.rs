//! The control thread: one loop for the front ends of all disks.
//!
//! A message enters the dispatcher only when it is whole and its answer fits, so no front end
//! can hold up another one. A message is one event for the device's shard, whose next turn is
//! waited for; what takes longer comes back as news. What messages mean is the core's to say.

mod answer;
mod connection;
mod descriptors;
mod disk;
mod front;
mod handler;
mod look;
mod messages;
mod remedy;
mod sys;

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use sluice_core::device::{ControlReply, DeviceId};

use self::connection::End;
use self::disk::Disk;
use self::front::Front;
use crate::foreign::{Pools, Quota};
use crate::mailbox::{Bell, ControlEnd, News};
use crate::parking::Place;
use crate::store::Watch;

/// A disk and the way to it.
#[derive(Debug)]
pub struct Served {
    /// The disk's number on its shard.
    pub device: DeviceId,
    /// The shard, by the place of its mailbox.
    pub shard: usize,
    /// The disk's name, for the log.
    pub name: String,
    /// Where its front end comes from.
    pub socket: Socket,
    /// Where its front end is parked.
    pub parking: Option<Place>,
    /// The file whose size is the disk's.
    pub image: Option<Watch>,
}

/// Where a front end comes from.
#[derive(Debug)]
pub enum Socket {
    /// It connects here; when it has left, the next one may.
    Listen(UnixListener),
    /// It is connected already, and there is no other.
    Connected(UnixStream),
}

/// How often it is looked what has become of an image's file.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long a disk takes no front end after one that has held its shard up, in patiences.
const PAUSE: u32 = 12;

/// What may be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long a message may stay incomplete or unanswerable, and how long a front end that
    /// says nothing may keep others out.
    pub patience: Duration,
    /// Whether tracking of requests in flight is offered. Without it a restart under load loses
    /// requests; tests want to see that.
    pub tracked: bool,
    /// Bytes of memory that front ends may have mapped.
    pub memory: Quota,
    /// Descriptors that front ends may have handed over.
    pub descriptors: Quota,
    /// Whether guest memory may be a file of any kind: a front end is trusted then not to hold up
    /// the daemon with one.
    pub any_file: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(5),
            tracked: true,
            memory: Quota::memory(),
            descriptors: Quota::descriptors(),
            any_file: false,
        }
    }
}

/// Serves front ends until `stop` rings.
///
/// `ends` are the mailboxes of the shards. Front ends that are connected when it returns see
/// their connection close.
///
/// # Errors
/// When a disk names a shard there is none of, or epoll cannot be had.
pub fn run(
    served: Vec<Served>,
    ends: &[ControlEnd],
    stop: &Bell,
    options: Options,
) -> anyhow::Result<()> {
    let poller = epoll::create(epoll::CreateFlags::CLOEXEC).context("creating an epoll")?;
    watch(&poller, stop, Token::Stop)?;
    for (end, shard) in ends.iter().zip(0..) {
        watch(&poller, &end.bell, Token::Bell(shard))?;
    }
    let Options { patience, tracked, memory, descriptors, any_file } = options;
    let freed = Bell::new().context("creating an eventfd")?;
    watch(&poller, &freed, Token::Freed)?;
    let pools = Pools::new(served.len(), (memory, descriptors), any_file, freed.clone());
    let mut fronts = Vec::with_capacity(served.len());
    for (Served { device, shard, name, socket, parking, image }, index) in
        served.into_iter().zip(0..)
    {
        ensure!(shard < ends.len(), "{name}: there is no shard {shard}");
        let (listener, stream) = match socket {
            Socket::Listen(listener) => (Some(listener), None),
            Socket::Connected(stream) => (None, Some(stream)),
        };
        let end = &ends[shard];
        let disk = Disk {
            device,
            name: name.clone(),
            end,
            image,
            tracked,
            account: pools.account(fronts.len(), &name),
            parked: RefCell::default(),
        };
        let mut front = Front::new(shard, disk, listener);
        if let Some(listener) = front.listener() {
            listener.set_nonblocking(true).context(name.clone())?;
            watch(&poller, listener, Token::Listener(index))?;
        }
        if let Some(place) = parking {
            front.take_up(place, Instant::now()).with_context(|| name.clone())?;
        }
        if let Some(stream) = stream {
            front.connect(stream, Instant::now()).context(name)?;
        }
        watch_front(&poller, &front, index)?;
        fronts.push(front);
    }
    let again = fronts.iter().map(|front| front.stream().is_some()).collect();
    let look_due = Instant::now() + LOOK_INTERVAL;
    Loop { poller, ends, freed, fronts, again, patience, look_due }.run()
}

/// What an event is about. The rest are numbers of shards and of fronts.
#[derive(Clone, Copy)]
enum Token {
    Stop,
    Bell(u32),
    Listener(u32),
    Connection(u32),
    Freed,
}

impl Token {
    const fn pack(self) -> u64 {
        let (kind, index) = match self {
            Self::Stop => (0, 0),
            Self::Bell(shard) => (1, shard),
            Self::Listener(front) => (2, front),
            Self::Connection(front) => (3, front),
            Self::Freed => (4, 0),
        };
        kind << 32 | index as u64
    }

    #[expect(clippy::cast_possible_truncation, reason = "the halves of what was packed")]
    const fn unpack(data: u64) -> Self {
        let index = data as u32;
        match data >> 32 {
            0 => Self::Stop,
            1 => Self::Bell(index),
            2 => Self::Listener(index),
            3 => Self::Connection(index),
            _ => Self::Freed,
        }
    }
}

struct Loop<'e> {
    poller: OwnedFd,
    ends: &'e [ControlEnd],
    /// Rings when a front end that had to wait need not any more.
    freed: Bell,
    fronts: Vec<Front<'e>>,
    /// Which fronts have their turn.
    again: Vec<bool>,
    patience: Duration,
    /// When the files of images are looked at next.
    look_due: Instant,
}

impl Loop<'_> {
    fn run(&mut self) -> anyhow::Result<()> {
        loop {
            if self.wait()? {
                return Ok(());
            }
            let now = Instant::now();
            if now >= self.look_due {
                self.look_due = now + LOOK_INTERVAL;
                self.fronts.iter().for_each(Front::look_at_image);
            }
            // Connections before listeners: who has gone makes room for who comes.
            self.news();
            for index in 0..self.fronts.len() {
                if std::mem::take(&mut self.again[index]) {
                    self.again[index] = self.fronts[index].turn(now);
                }
            }
            for index in 0..self.fronts.len() {
                self.fronts[index].check(now, self.patience);
                if self.fronts[index].accept(now) {
                    let number = u32::try_from(index).context("too many disks")?;
                    watch_front(&self.poller, &self.fronts[index], number)?;
                    self.again[index] = true;
                }
            }
        }
    }

    /// Sleeps until there is something to do; `true` when that is to end.
    fn wait(&mut self) -> anyhow::Result<bool> {
        let timeout = if self.again.contains(&true) {
            Some(Duration::ZERO)
        } else {
            let deadlines = self.fronts.iter().filter_map(|front| front.deadline(self.patience));
            let look = self.fronts.iter().any(Front::has_image).then_some(self.look_due);
            deadlines.chain(look).min().map(|due| due.saturating_duration_since(Instant::now()))
        };
        let timeout = timeout.map(Timespec::try_from).transpose()?;
        let mut events = Vec::with_capacity(64);
        let room = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.poller, room, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for front ends"),
        }
        for event in events {
            match Token::unpack(event.data.u64()) {
                Token::Stop => return Ok(true),
                Token::Bell(shard) => self.ends[shard as usize].bell.clear(),
                Token::Listener(front) => self.fronts[front as usize].knock(),
                Token::Connection(front) => self.again[front as usize] = true,
                Token::Freed => {
                    self.freed.clear();
                    self.again.fill(true);
                }
            }
        }
        Ok(false)
    }

    /// What shards tell unasked.
    fn news(&mut self) {
        for (shard, end) in self.ends.iter().enumerate() {
            while let Ok(news) = end.news.try_recv() {
                let (News::Late(device, _)
                | News::ConfigChanged(device)
                | News::Evict(device)
                | News::Held(device)
                | News::Left(device)) = news;
                let of_it = |front: &Front<'_>| (front.shard, front.device()) == (shard, device);
                let Some(index) = self.fronts.iter().position(of_it) else { continue };
                let front = &mut self.fronts[index];
                match news {
                    News::Late(_, ControlReply::VringBase { index, base }) => {
                        front.stopped(index, base);
                    }
                    // Nothing else is ever late.
                    News::Late(..) => {}
                    News::ConfigChanged(_) => front.config_changed(),
                    News::Evict(_) => front.close(&End::Evicted),
                    News::Held(_) => front.held(Instant::now(), self.patience * PAUSE),
                    News::Left(_) => front.left(),
                }
                // What waited behind a stop comes next.
                self.again[index] = true;
            }
        }
    }
}

/// Edge-triggered: a piece of a message, or a full socket, must not keep the loop awake.
fn watch(poller: &OwnedFd, fd: impl AsFd, token: Token) -> rustix::io::Result<()> {
    use epoll::EventFlags as Flags;
    let flags = match token {
        Token::Connection(_) => Flags::IN | Flags::OUT | Flags::RDHUP | Flags::ET,
        Token::Listener(_) => Flags::IN | Flags::ET,
        Token::Stop | Token::Bell(_) | Token::Freed => Flags::IN,
    };
    epoll::add(poller, fd, epoll::EventData::new_u64(token.pack()), flags)
}

fn watch_front(poller: &OwnedFd, front: &Front<'_>, index: u32) -> rustix::io::Result<()> {
    front.stream().map_or(Ok(()), |stream| watch(poller, stream, Token::Connection(index)))
}
