//! The engines of a file, and which one it gets.

use std::os::fd::BorrowedFd;

use sluice_core::op::{Op, OpId, OpKind, Piece};

use super::ground::Ground;
use super::inline::{Aside, carry_out};
use super::options::EngineKind;
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
pub(super) enum Engine {
    Inline { ground: Ground, work: Box<Work>, aside: Aside },
}

impl Engine {
    /// The engine that was asked for, or the best one for the file.
    pub(super) fn new(
        ground: Ground,
        _wanted: Option<EngineKind>,
    ) -> anyhow::Result<(Self, EngineKind)> {
        let inline = Self::Inline { ground, work: Box::new(Work::new()), aside: Aside::default() };
        Ok((inline, EngineKind::Inline))
    }

    pub(super) const fn ground(&self) -> &Ground {
        match self {
            Self::Inline { ground, .. } => ground,
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
            Self::Inline { ground, work, aside } => {
                let done = work.begin(op, pieces, mem, ground);
                Some(done.unwrap_or_else(|| carry_out(work, ground, aside)))
            }
        }
    }

    #[inline]
    pub(super) fn kick(&mut self) {
        match self {
            Self::Inline { .. } => {}
        }
    }

    #[inline]
    pub(super) fn reap(&mut self) -> Option<Ended> {
        match self {
            Self::Inline { .. } => None,
        }
    }

    /// Sleeps until [`reap`](Self::reap) may have something.
    pub(super) fn wait(&mut self) {
        match self {
            Self::Inline { .. } => {}
        }
    }

    pub(super) fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Inline { .. } => None,
        }
    }
}
