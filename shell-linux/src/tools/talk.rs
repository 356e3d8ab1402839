//! A front end that goes on talking to its device while the daemons behind it die.
//!
//! Its connection is parked, so a message may be answered by another daemon than the one that it
//! was sent to, or find the connection closed when the daemon died in the middle of it. What was
//! agreed upon has to hold all the same.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use anyhow::ensure;
use sluice_sim::prng::Prng;

use super::guest::Guest;
use super::link::Link;
use super::shared::Shared;
use crate::frontend::{GuestMemory, Wires};
use crate::mapping::Mappings;

/// The longest pause between two messages: some daemons die in the middle of one, most do not.
const PAUSE_US: u64 = 5000;
/// Bytes of memory that comes and goes.
const MORE_BYTES: u64 = 2 << 20;

/// What was said, as far as it has to be remembered.
#[derive(Debug)]
pub(super) struct Talk<'l, 'a> {
    link: &'l mut Link<'a>,
    prng: Prng,
    /// Where queues stand that are stopped.
    stopped: Vec<Option<u32>>,
    /// Memory besides that of the rings.
    more: Option<GuestMemory>,
    said: u64,
}

impl<'l, 'a> Talk<'l, 'a> {
    pub(super) fn new(link: &'l mut Link<'a>, prng: Prng) -> Self {
        let stopped = vec![None; link.wires().len()];
        Self { link, prng, stopped, more: None, said: 0 }
    }

    pub(super) const fn guest(&self) -> &'a Guest {
        self.link.guest()
    }

    pub(super) const fn wires(&self) -> &'a [Wires] {
        self.link.wires()
    }

    /// Talks until it is over, and leaves all queues running. Says how many messages were answered.
    /// A violation ends it, and everything else.
    pub(super) fn run(&mut self, shared: &Shared, over: &AtomicBool) -> anyhow::Result<u64> {
        let done = self.talk(shared, over);
        if done.is_err() {
            shared.stop.store(true, Ordering::Relaxed);
        }
        done.map(|()| self.said)
    }

    fn talk(&mut self, shared: &Shared, over: &AtomicBool) -> anyhow::Result<()> {
        let mem = self.guest().memory.map()?;
        loop {
            let last = over.load(Ordering::Relaxed);
            let said = if last { self.start_all(&mem) } else { self.say_something(&mem) };
            match said {
                Ok(()) if last => return Ok(()),
                Ok(()) => self.said += 1,
                // It has died in the middle of a message: everything is said anew.
                Err(_) if self.link.wait_closed(Duration::ZERO) => {
                    self.link.reconnect(shared, || Ok(()))?;
                    self.stopped.fill(None);
                    self.more = None;
                }
                Err(error) => return Err(error.context("a front end that goes on talking")),
            }
            let pause = self.prng.below(PAUSE_US);
            self.link.wait_closed(Duration::from_micros(pause));
        }
    }

    fn say_something(&mut self, mem: &Mappings) -> anyhow::Result<()> {
        let queue = self.prng.index(self.stopped.len());
        let (wires, connection) = (&self.link.wires()[queue], self.link.connection());
        match self.prng.below(8) {
            0 => connection.look_again(),
            1 => {
                wires.renew_call()?;
                connection.tell_call(wires)
            }
            2 => connection.tell_err(wires),
            3 => connection.share_table(&self.link.guest().memory, self.more.as_ref()),
            4 => match self.more.take() {
                Some(more) => connection.plug(&more, false),
                None => {
                    let more = GuestMemory::new(MORE_BYTES)?;
                    connection.plug(&more, true)?;
                    self.more = Some(more);
                    Ok(())
                }
            },
            5 => {
                connection.enable(wires, false)?;
                connection.enable(wires, true)
            }
            _ if self.stopped[queue].is_some() => self.start(queue, mem),
            _ => {
                let base = connection.stop(wires)?;
                self.stopped[queue] = Some(base);
                self.check_stopped(queue, base, mem)
            }
        }
    }

    /// Starts a queue where it was stopped, which is where it still has to be.
    fn start(&mut self, queue: usize, mem: &Mappings) -> anyhow::Result<()> {
        let Some(base) = self.stopped[queue] else { return Ok(()) };
        self.check_stopped(queue, base, mem)?;
        let guest = self.guest();
        self.link.connection().start(&guest.memory, &self.link.wires()[queue], base)?;
        self.stopped[queue] = None;
        Ok(())
    }

    /// Nothing is given back by a queue that is stopped.
    fn check_stopped(&self, queue: usize, base: u32, mem: &Mappings) -> anyhow::Result<()> {
        let wires = &self.link.wires()[queue];
        // What was given back before may not have been seen in a packed ring.
        let known = wires.known_base(mem)?;
        let moved = known != base && !wires.layout().packed;
        ensure!(!moved, "queue {queue} was stopped at {base:#x} and stands at {known:#x}");
        let left = self.guest().left(wires, mem)?;
        ensure!(left.is_empty(), "queue {queue} was stopped and has {left:?} under way");
        Ok(())
    }

    fn start_all(&mut self, mem: &Mappings) -> anyhow::Result<()> {
        (0..self.stopped.len()).try_for_each(|queue| self.start(queue, mem))
    }
}
