//! Threads that make the system calls, where io_uring is not to be had.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use anyhow::Context;
use rustix::event::{EventfdFlags, eventfd};
use sluice_core::op::{Op, OpId, Piece};

use super::apart::Apart;
use super::aside::Asides;
use super::engine::Ended;
use super::ground::Ground;
use super::inline::carry_out;
use super::work::Work;
use crate::mapping::Mappings;

/// Threads of an image, and so the operations that its device sees at once.
const THREADS: usize = 8;

/// The caller's side of the threads of an image.
#[derive(Debug)]
pub(super) struct Threads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Keeps requests that overlap apart, by the number of the operation.
    apart: Option<Apart>,
    /// Those that have to wait for others.
    held: Vec<Work>,
    /// Begun and not handed over yet.
    fresh: VecDeque<Work>,
    /// Ended and not asked for yet.
    ended: VecDeque<(Work, i64)>,
    free: Vec<Work>,
}

#[derive(Debug)]
struct Shared {
    ground: Ground,
    belts: Mutex<Belts>,
    /// Rung when there is something to do.
    todo: Condvar,
    /// Readable while there is something done.
    done: OwnedFd,
    /// Whether there is: looked at without the lock.
    any_done: AtomicBool,
}

#[derive(Debug, Default)]
struct Belts {
    todo: VecDeque<Work>,
    done: VecDeque<(Work, i64)>,
    closed: bool,
}

impl Threads {
    pub(super) fn new(ground: Ground) -> anyhow::Result<Self> {
        let done = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .context("cannot get an eventfd for an image's threads")?;
        let shared = Arc::new(Shared {
            ground,
            belts: Mutex::default(),
            todo: Condvar::new(),
            done,
            any_done: AtomicBool::new(false),
        });
        let mut this = Self {
            apart: shared.ground.apart(),
            held: Vec::new(),
            shared,
            threads: Vec::new(),
            fresh: VecDeque::new(),
            ended: VecDeque::new(),
            free: Vec::new(),
        };
        for _ in 0..THREADS {
            let shared = Arc::clone(&this.shared);
            match Builder::new().name("image".to_owned()).spawn(move || shared.work()) {
                Ok(thread) => this.threads.push(thread),
                // Fewer do it too, only slower.
                Err(_) if !this.threads.is_empty() => break,
                Err(error) => return Err(error).context("cannot start a thread for an image"),
            }
        }
        Ok(this)
    }

    pub(super) fn ground(&self) -> &Ground {
        &self.shared.ground
    }

    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.shared.done.as_fd()
    }

    pub(super) fn submit(
        &mut self,
        op: &Op,
        pieces: impl Iterator<Item = Piece>,
        mem: &Mappings,
    ) -> Option<i64> {
        let mut work = self.free.pop().unwrap_or_else(Work::new);
        let result = work.begin(op, pieces, mem, &self.shared.ground);
        match result {
            Some(_) => self.free.push(work),
            None if self.enter(&work) => self.fresh.push_back(work),
            None => self.held.push(work),
        }
        result
    }

    fn enter(&mut self, work: &Work) -> bool {
        self.apart.as_mut().is_none_or(|apart| apart.enter(work.id.index, work.touches()))
    }

    /// Hands over what has waited for this operation to end.
    fn leave(&mut self, ended: OpId) {
        let Some(apart) = &mut self.apart else { return };
        apart.leave(ended.index);
        while let Some(next) = apart.ready() {
            let at = self.held.iter().position(|work| work.id.index == next);
            self.fresh.extend(at.map(|at| self.held.swap_remove(at)));
        }
        self.kick();
    }

    pub(super) fn kick(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        let one = self.fresh.len() == 1;
        self.shared.belts().todo.append(&mut self.fresh);
        if one {
            self.shared.todo.notify_one();
        } else {
            self.shared.todo.notify_all();
        }
    }

    pub(super) fn reap(&mut self) -> Option<Ended> {
        if self.ended.is_empty() {
            if !self.shared.any_done.load(Ordering::Acquire) {
                return None;
            }
            let mut belts = self.shared.belts();
            core::mem::swap(&mut self.ended, &mut belts.done);
            self.shared.any_done.store(false, Ordering::Relaxed);
            // With the lock held, so that no later ring of it is swallowed.
            let _ = rustix::io::read(&self.shared.done, &mut [0; 8]);
        }
        let (work, result) = self.ended.pop_front()?;
        let Work { id, kind, offset, .. } = work;
        self.free.push(work);
        self.leave(id);
        Some(Ended { id, kind, offset, result })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.belts().closed = true;
        self.shared.todo.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn belts(&self) -> MutexGuard<'_, Belts> {
        self.belts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of one thread.
    fn work(&self) {
        let mut asides = Asides::default();
        let mut belts = self.belts();
        loop {
            if let Some(mut work) = belts.todo.pop_front() {
                drop(belts);
                let result = carry_out(&mut work, &self.ground, &mut asides);
                belts = self.belts();
                if belts.done.is_empty() {
                    self.any_done.store(true, Ordering::Release);
                    let _ = rustix::io::write(&self.done, &1_u64.to_ne_bytes());
                }
                belts.done.push_back((work, result));
            } else if belts.closed {
                return;
            } else {
                belts = self.todo.wait(belts).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}
