//! One io_uring an image: operations are pushed as they come and enter the kernel together.
//!
//! The ring's own descriptor says when completions are there, so nothing else is woken and
//! nothing has to be read to quiet it.

use std::collections::VecDeque;
use std::io::{ErrorKind, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use io_uring::{IoUring, Probe, opcode, squeue, types};
use rustix::io::Errno;
use sluice_core::op::{Op, Piece};

use super::apart::Apart;
use super::aside::Asides;
use super::engine::Ended;
use super::ground::Ground;
use super::work::{Step, Work, failure};
use crate::mapping::Mappings;

/// Entries of the submission queue: more are pushed in several goes.
const SUBMISSIONS: u32 = 256;
/// Operations that the kernel has at once; the completion queue holds them all.
const UNDERWAY_MAX: usize = 1024;
/// Attempts to hand entries over before the next turn gets its chance.
const ATTEMPTS: u32 = 16;

/// A place for an operation. What the kernel is told to look at lies on the heap, so places may
/// move.
#[derive(Debug)]
struct Place {
    work: Work,
    /// Its aligned memory, by number.
    aside: Option<u32>,
}

/// The ring and what is in it.
pub(super) struct Uring {
    ring: IoUring,
    ground: Ground,
    places: Vec<Place>,
    free: Vec<u32>,
    asides: Asides,
    /// Keeps requests that overlap apart, by place.
    apart: Option<Apart>,
    /// Operations that found no place in the ring, or no aligned memory, in their order.
    waiting: VecDeque<u32>,
    /// Operations that failed before the kernel saw them.
    failed: VecDeque<Ended>,
}

impl Uring {
    /// A ring; the ground is handed back where the kernel has none to give.
    pub(super) fn new(ground: Ground) -> core::result::Result<Self, (Ground, std::io::Error)> {
        match make_ring() {
            Ok(ring) => Ok(Self {
                ring,
                apart: ground.apart(),
                ground,
                places: Vec::new(),
                free: Vec::new(),
                asides: Asides::default(),
                waiting: VecDeque::new(),
                failed: VecDeque::new(),
            }),
            Err(error) => Err((ground, error)),
        }
    }

    pub(super) const fn ground(&self) -> &Ground {
        &self.ground
    }

    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    #[inline]
    pub(super) fn submit(
        &mut self,
        op: &Op,
        pieces: impl Iterator<Item = Piece>,
        mem: &Mappings,
    ) -> Option<i64> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { work: Work::new(), aside: None });
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        let place = &mut self.places[index as usize];
        if let Some(result) = place.work.begin(op, pieces, mem, &self.ground) {
            self.free.push(index);
            return Some(result);
        }
        if let Some(apart) = &mut self.apart
            && !apart.enter(index, place.work.touches())
        {
            return None;
        }
        self.begin(index);
        // No descriptor says that something has failed before the kernel saw it.
        let failed = self.failed.back().filter(|ended| ended.id == op.id)?.result;
        self.failed.pop_back();
        Some(failed)
    }

    /// Starts what is in a place, or lets it wait for room.
    #[inline]
    fn begin(&mut self, index: u32) {
        // Nobody overtakes those who wait, or a stream of small requests would starve them.
        if !self.waiting.is_empty() || !self.start(index) {
            self.waiting.push_back(index);
        }
    }

    /// Hands everything over that has been pushed.
    #[inline]
    pub(super) fn kick(&mut self) {
        for _ in 0..ATTEMPTS {
            if self.ring.submission().is_empty() {
                return;
            }
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Short of memory, or completions have to be taken out first.
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    #[inline]
    pub(super) fn reap(&mut self) -> Option<Ended> {
        loop {
            if let Some(ended) = self.failed.pop_front() {
                return Some(ended);
            }
            let Some((index, result)) = self.completion() else {
                // What could not be handed over, or goes on after a partial result.
                self.let_in();
                self.kick();
                return None;
            };
            if let Some(ended) = self.take_in(index, result) {
                return Some(ended);
            }
        }
    }

    /// The next completion: the place it is of, and its result.
    #[inline]
    fn completion(&mut self) -> Option<(u32, i64)> {
        for _ in 0..2 {
            if let Some(entry) = self.ring.completion().next() {
                let index = u32::try_from(entry.user_data()).ok()?;
                return Some((index, i64::from(entry.result())));
            }
            // The kernel has completions for us but leaves them until it is entered.
            if !self.ring.submission().taskrun() {
                return None;
            }
            let _ = self.ring.submit();
        }
        None
    }

    #[inline]
    fn take_in(&mut self, index: u32, result: i64) -> Option<Ended> {
        let place = self.places.get_mut(index as usize)?;
        let detour = place.aside.and_then(|aside| self.asides.detour(aside).ok());
        let Some(result) = place.work.ended(result, &self.ground, detour) else {
            if !self.push(index) {
                self.waiting.push_front(index);
            }
            return None;
        };
        Some(self.end(index, result))
    }

    /// Frees a place, which lets in who waits.
    #[inline]
    fn end(&mut self, index: u32, result: i64) -> Ended {
        let place = &mut self.places[index as usize];
        let Work { id, kind, offset, .. } = place.work;
        if let Some(aside) = place.aside.take() {
            self.asides.give_back(aside);
        }
        self.free.push(index);
        self.leave(index);
        self.let_in();
        Ended { id, kind, offset, result }
    }

    /// Begins what has waited for the request in this place to end.
    #[inline]
    fn leave(&mut self, index: u32) {
        let Some(apart) = &mut self.apart else { return };
        apart.leave(index);
        while let Some(next) = self.apart.as_mut().and_then(Apart::ready) {
            self.begin(next);
        }
    }

    /// Begins as much of what waits as there is room for.
    #[inline]
    fn let_in(&mut self) {
        while let Some(next) = self.waiting.pop_front() {
            if !self.start(next) {
                self.waiting.push_front(next);
                break;
            }
        }
    }

    /// Begins what is in a place; `false` when it has to wait for another to end.
    #[inline]
    fn start(&mut self, index: u32) -> bool {
        let held = self.apart.as_ref().map_or(0, Apart::waiting);
        let underway = self.places.len() - self.free.len() - self.waiting.len() - held;
        if underway > UNDERWAY_MAX {
            return false;
        }
        let place = &mut self.places[index as usize];
        if place.aside.is_none() && place.work.wants_detour(&self.ground) {
            let Some(aside) = self.asides.take() else { return false };
            place.aside = Some(aside);
            let ready = match self.asides.detour(aside) {
                Ok(detour) => place.work.take_detour(detour),
                Err(errno) => Some(failure(errno)),
            };
            if let Some(result) = ready {
                let Work { id, kind, offset, .. } = place.work;
                place.aside = None;
                self.asides.give_back(aside);
                self.free.push(index);
                self.failed.push_back(Ended { id, kind, offset, result });
                self.leave(index);
                return true;
            }
        }
        self.push(index)
    }

    /// Puts the next step of a place into the submission queue; `false` when that is full.
    #[inline]
    fn push(&mut self, index: u32) -> bool {
        if self.ring.submission().is_full() {
            self.kick();
        }
        let entry = self.entry(&self.places[index as usize].work).user_data(u64::from(index));
        // SAFETY: the entry names the image's file, open as long as the ring, and memory that
        // stays until the operation has ended: ranges of live mappings, listed on the heap in
        // a place that is not used again before, see the head of `vector`.
        unsafe { self.ring.submission().push(&entry) }.is_ok()
    }

    #[inline]
    fn entry(&self, work: &Work) -> squeue::Entry {
        let fd = types::Fd(self.ground.file.as_raw_fd());
        let ranges = work.vector().entries();
        let count = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
        match work.step() {
            Step::Read(at) => opcode::Readv::new(fd, ranges.as_ptr(), count).offset(at).build(),
            Step::Write(at) => opcode::Writev::new(fd, ranges.as_ptr(), count).offset(at).build(),
            Step::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Step::Allocate(flags) => {
                let (offset, len) = work.range();
                let mode = flags.bits().cast_signed();
                opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build()
            }
        }
    }
}

/// A ring with all that is needed of one.
fn make_ring() -> Result<IoUring> {
    let completions = u32::try_from(UNDERWAY_MAX).unwrap_or(u32::MAX).next_power_of_two();
    let builder = || {
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(completions * 2);
        builder
    };
    // No interrupts for completions: the shard looks often enough, or sleeps in the kernel.
    let quiet = builder().setup_coop_taskrun().setup_taskrun_flag().build(SUBMISSIONS);
    let ring = match quiet {
        // Linux before 5.19 knows neither flag.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => builder().build(SUBMISSIONS)?,
        other => other?,
    };
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed =
        [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];
    if !needed.iter().all(|&code| probe.is_supported(code)) || !ring.params().is_feature_nodrop() {
        return Err(Errno::OPNOTSUPP.into());
    }
    Ok(ring)
}

impl core::fmt::Debug for Uring {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { ground, places, waiting, .. } = self;
        let (places, waiting) = (places.len(), waiting.len());
        write!(f, "Uring {{ {ground:?}, {places} places, {waiting} waiting }}")
    }
}
