//! The engines of a file, and which one it gets.

use std::os::fd::BorrowedFd;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use sluice_core::op::{Op, OpId, OpKind, Piece};

use super::align::Alignment;
use super::aside::Asides;
use super::ground::Ground;
use super::inline::carry_out;
use super::options::EngineKind;
use super::probe::best_engine;
use super::threads::Threads;
use super::uring::Uring;
use super::work::Work;
use crate::mapping::Mappings;

/// An operation that has come out of an engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) id: OpId,
    pub(super) kind: OpKind,
    pub(super) offset: u64,
    pub(super) result: i64,
}

/// What carries operations out on a file.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one an image, and it stays in its place")]
pub(super) enum Engine {
    Inline { ground: Ground, work: Work, asides: Asides },
    Uring(Uring),
    Threads(Threads),
}

impl Engine {
    /// The engine that was asked for, or the best one for the file; and its name, with the
    /// reason where it is not the best.
    pub(super) fn new(
        ground: Ground,
        wanted: Option<EngineKind>,
    ) -> anyhow::Result<(Self, String)> {
        let kind = wanted.unwrap_or_else(|| best_engine(&ground.file));
        let engine = match kind {
            EngineKind::Inline => {
                Self::Inline { ground, work: Work::new(), asides: Asides::default() }
            }
            EngineKind::Threads => Self::Threads(Threads::new(ground)?),
            EngineKind::Uring => match Uring::new(ground) {
                Ok(uring) => Self::Uring(uring),
                Err((_, error)) if wanted.is_some() => {
                    return Err(error).context("io_uring is not to be had here");
                }
                Err((ground, error)) => {
                    let threads = Self::Threads(Threads::new(ground)?);
                    return Ok((threads, format!("threads (no io_uring: {error})")));
                }
            },
        };
        Ok((engine, kind.to_string()))
    }

    #[inline]
    pub(super) fn ground(&self) -> &Ground {
        match self {
            Self::Inline { ground, .. } => ground,
            Self::Uring(uring) => uring.ground(),
            Self::Threads(threads) => threads.ground(),
        }
    }

    /// Whether bytes are moved before [`submit`](Self::submit) or [`kick`](Self::kick) returns.
    //= spec/fairness.md#FAIR-4
    pub(super) fn works_in_turn(&self) -> bool {
        match self {
            Self::Inline { .. } => true,
            // What is in the page cache is copied when the kernel is entered.
            Self::Uring(uring) => uring.ground().alignment == Alignment::NONE,
            Self::Threads(_) => false,
        }
    }

    #[inline]
    pub(super) fn submit(
        &mut self,
        op: &Op,
        pieces: impl Iterator<Item = Piece>,
        mem: &Mappings,
    ) -> Option<i64> {
        match self {
            Self::Inline { ground, work, asides } => {
                let done = work.begin(op, pieces, mem, ground);
                Some(done.unwrap_or_else(|| carry_out(work, ground, asides)))
            }
            Self::Uring(uring) => uring.submit(op, pieces, mem),
            Self::Threads(threads) => threads.submit(op, pieces, mem),
        }
    }

    #[inline]
    pub(super) fn kick(&mut self) {
        match self {
            Self::Inline { .. } => {}
            Self::Uring(uring) => uring.kick(),
            Self::Threads(threads) => threads.kick(),
        }
    }

    #[inline]
    pub(super) fn reap(&mut self) -> Option<Ended> {
        match self {
            Self::Inline { .. } => None,
            Self::Uring(uring) => uring.reap(),
            Self::Threads(threads) => threads.reap(),
        }
    }

    /// Sleeps until [`reap`](Self::reap) may have something.
    pub(super) fn wait(&mut self) {
        self.kick();
        if let Some(fd) = self.wake_fd() {
            // Whatever ends it, the caller looks again.
            let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], None);
        }
    }

    pub(super) fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Inline { .. } => None,
            Self::Uring(uring) => Some(uring.wake_fd()),
            Self::Threads(threads) => Some(threads.wake_fd()),
        }
    }
}
