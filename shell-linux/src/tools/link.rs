//! A guest's way to its disk, over the deaths of back ends.

use core::sync::atomic::Ordering;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::guest::Guest;
use super::shared::Shared;
use crate::frontend::{Connection, Wires};
use crate::mapping::Mappings;

/// How long a back end may need to serve its guest again.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked whether something has happened.
pub(super) const LOOK: Duration = Duration::from_micros(200);

/// The guest's connection: the first one, or the last that was made since.
#[derive(Debug)]
pub(super) struct Link<'a> {
    guest: &'a Guest,
    socket: PathBuf,
    wires: &'a [Wires],
    again: Option<Connection>,
    /// Connections that were made anew.
    pub(super) reconnects: u32,
}

impl<'a> Link<'a> {
    pub(super) const fn new(guest: &'a Guest, socket: PathBuf, wires: &'a [Wires]) -> Self {
        Self { guest, socket, wires, again: None, reconnects: 0 }
    }

    /// The guest whose it is.
    pub(super) const fn guest(&self) -> &'a Guest {
        self.guest
    }

    /// The guest's queues.
    pub(super) const fn wires(&self) -> &'a [Wires] {
        self.wires
    }

    /// The connection of now.
    pub(super) fn connection(&self) -> &Connection {
        self.again.as_ref().unwrap_or(&self.guest.connection)
    }

    /// Waits this long, or until the back end is gone, which it says.
    pub(super) fn wait_closed(&self, at_most: Duration) -> bool {
        self.connection().wait_closed(at_most)
    }

    /// Connects to whoever listens now. It does everything again that is under way, and not for the
    /// first time if an earlier connection to it did not last.
    fn connect(&self, shared: &Shared) -> anyhow::Result<Connection> {
        let connection = self.guest.connection.reopen(&self.socket)?;
        shared.history().restart();
        self.guest.resume(&connection, self.wires, &self.guest.memory.map()?)?;
        Ok(connection)
    }

    /// Connects, and leaves at once.
    pub(super) fn visit(&self, shared: &Shared) {
        let _ = self.connect(shared);
    }

    /// Connects to the next back end as soon as there is one. `check` may see that there will not.
    pub(super) fn reconnect(
        &mut self,
        shared: &Shared,
        mut check: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            match self.connect(shared) {
                Ok(connection) => {
                    self.again = Some(connection);
                    self.reconnects += 1;
                    return Ok(());
                }
                Err(error) if begin.elapsed() > PATIENCE => {
                    return Err(error.context("the guest is not served after a restart"));
                }
                Err(_) => check()?,
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// Waits until everything that a dead back end has given back is seen, so that its successor
/// repeats exactly what is under way, and tells the history. Says how much came back in all.
pub(super) fn settle(guest: &Guest, wires: &[Wires], shared: &Shared) -> anyhow::Result<u64> {
    let (deaths, begin) = (shared.died(), Instant::now());
    while !shared.have_all_seen(deaths) && !shared.stop.load(Ordering::Relaxed) {
        ensure!(begin.elapsed() < PATIENCE, "not all that was given back has come");
        // It may have died before it could interrupt.
        wires.iter().for_each(Wires::interrupt);
        std::thread::sleep(LOOK);
    }
    if shared.have_all_seen(deaths) {
        let mem = guest.memory.map()?;
        wires.iter().try_for_each(|wires| check_order(guest, wires, &mem, shared))?;
    }
    shared.history().restart();
    Ok(shared.done.load(Ordering::Relaxed))
}

/// What is left of a queue is in the order in which the guest has asked for it, whoever took it up
/// how often: a successor that repeats it in another order has counted in that order.
//= spec/recovery.md#REC-6
fn check_order(
    guest: &Guest,
    wires: &Wires,
    mem: &Mappings,
    shared: &Shared,
) -> anyhow::Result<()> {
    let (queue, left) = (wires.index(), guest.left(wires, mem)?);
    let asked = shared.asked(queue);
    ensure!(
        is_in_order(&left, &asked),
        "queue {queue}: {left:?} are left in this order, and were asked for as {asked:?}"
    );
    Ok(())
}

/// Whether everything in `left` is in `asked`, and in the same order.
fn is_in_order(left: &[u16], asked: &[u16]) -> bool {
    let mut rest = asked.iter();
    left.iter().all(|name| rest.any(|other| other == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    //= spec/recovery.md#REC-6
    #[test]
    fn what_is_left_out_of_order_is_seen() {
        let asked = [7, 3, 9, 0, 4];
        for left in [&[][..], &[7], &[4], &[7, 9, 4], &asked] {
            assert!(is_in_order(left, &asked), "{left:?}");
        }
        for left in [&[9, 3][..], &[4, 0, 9, 3, 7], &[7, 3, 0, 9], &[1], &[7, 7]] {
            assert!(!is_in_order(left, &asked), "{left:?}");
        }
    }
}
