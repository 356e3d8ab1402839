//! An operation on a file as steps: what the next system call is, and what its result means.
//!
//! The engines differ in who makes the calls. Partial results, ends of files, detours through
//! aligned memory and file systems that cannot do a thing are the same for all and live here.

use std::fs::File;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use sluice_core::limits::PART_BYTES_MAX;
use sluice_core::op::{Op, OpId, OpKind, Piece};

use super::apart::Range;
use super::ground::Ground;
use super::vector::Vector;
use crate::mapping::Mappings;

/// The next system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Fill [`Work::vector`] from this offset.
    Read(u64),
    /// Store [`Work::vector`] at this offset.
    Write(u64),
    Sync,
    /// The range is the operation's.
    Allocate(FallocateFlags),
}

/// Where an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Transfer,
    Sync,
    Punch,
    ZeroRange,
    /// Punch, then allocate again: for file systems without the step above.
    Renew,
    Allocate,
    /// Write zeroes.
    Fill,
}

/// Aligned memory for an operation whose own is not: the same bytes as a file and as addresses.
///
/// Guest memory is copied there by the kernel as file I/O, so that guest memory that has
/// vanished is an error number like elsewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Detour<'a> {
    pub(super) file: &'a File,
    pub(super) at: u64,
    pub(super) range: libc::iovec,
}

/// An operation under way.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) id: OpId,
    pub(super) kind: OpKind,
    pub(super) offset: u64,
    len: u64,
    done: u64,
    stage: Stage,
    /// The guest's memory.
    guest: Vector,
    /// What the system calls get instead while it is in use.
    own: Vector,
    detour: bool,
}

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO_RANGE: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

impl Work {
    pub(super) fn new() -> Self {
        Self {
            id: OpId { index: 0, generation: 0 },
            kind: OpKind::Sync,
            offset: 0,
            len: 0,
            done: 0,
            stage: Stage::Sync,
            guest: Vector::default(),
            own: Vector::default(),
            detour: false,
        }
    }

    /// Becomes this operation; `Some` is the result of one that needs no step.
    #[inline]
    pub(super) fn begin(
        &mut self,
        op: &Op,
        pieces: impl Iterator<Item = Piece>,
        mem: &Mappings,
        ground: &Ground,
    ) -> Option<i64> {
        (self.id, self.kind, self.offset, self.len) = (op.id, op.kind, op.offset, op.len);
        self.done = 0;
        self.detour = false;
        self.stage = match op.kind {
            OpKind::Read | OpKind::Write => Stage::Transfer,
            OpKind::Sync => Stage::Sync,
            OpKind::Discard => Stage::Punch,
            OpKind::WriteZeroes { unmap } => first_zeroing(unmap, ground),
        };
        if self.stage == Stage::Fill {
            ground.zeroes(self.len, &mut self.own);
        }
        if self.stage != Stage::Transfer {
            return (self.len == 0 && self.stage != Stage::Sync).then_some(0);
        }
        self.gather_pieces(pieces, mem)
    }

    #[inline]
    fn gather_pieces(
        &mut self,
        pieces: impl Iterator<Item = Piece>,
        mem: &Mappings,
    ) -> Option<i64> {
        self.guest.clear();
        let mut skipped = 0;
        for piece in pieces {
            match piece {
                Piece::Guest(segment) => match mem.iovec(segment) {
                    Ok(range) => self.guest.push(range),
                    Err(_) => return Some(failure(Errno::FAULT)),
                },
                Piece::Skip(len) => skipped += len,
            }
        }
        match (self.kind, skipped) {
            (_, 0) if self.guest.left() == self.len && self.len <= PART_BYTES_MAX => {
                (self.len == 0).then_some(0)
            }
            (_, 0) => Some(failure(Errno::INVAL)),
            // Nobody is left to read it.
            (OpKind::Read, _) if skipped == self.len => Some(self.moved()),
            // The bytes to be written went with their owner, who was never told of success.
            _ => Some(failure(Errno::CANCELED)),
        }
    }

    /// The bytes of the image that it is about; none of a sync.
    pub(super) fn touches(&self) -> Range {
        let end = self.offset.saturating_add(self.len);
        let modifies = self.kind != OpKind::Read;
        match self.kind {
            OpKind::Sync => Range { start: 0, end: 0, modifies: false },
            _ => Range { start: self.offset, end, modifies },
        }
    }

    /// Whether the guest's memory is nothing for direct I/O.
    #[inline]
    pub(super) fn wants_detour(&self, ground: &Ground) -> bool {
        self.stage == Stage::Transfer && self.done == 0 && !self.guest.suits(ground.alignment)
    }

    /// Goes through other memory from here on; `Some` is its result if that failed.
    pub(super) fn take_detour(&mut self, detour: Detour<'_>) -> Option<i64> {
        self.detour = true;
        self.own.clear();
        let len = usize::try_from(self.len).unwrap_or(usize::MAX).min(detour.range.iov_len);
        self.own.push(libc::iovec { iov_len: len, ..detour.range });
        if self.kind != OpKind::Write {
            return None;
        }
        self.guest.write_all(detour.file, detour.at).err().map(failure)
    }

    /// The next system call.
    #[inline]
    pub(super) const fn step(&self) -> Step {
        let at = self.offset + self.done;
        match (self.stage, self.kind) {
            (Stage::Transfer, OpKind::Read) => Step::Read(at),
            (Stage::Transfer | Stage::Fill, _) => Step::Write(at),
            (Stage::Sync, _) => Step::Sync,
            (Stage::Punch | Stage::Renew, _) => Step::Allocate(PUNCH),
            (Stage::ZeroRange, _) => Step::Allocate(ZERO_RANGE),
            (Stage::Allocate, _) => Step::Allocate(FallocateFlags::KEEP_SIZE),
        }
    }

    /// The memory of a read or write.
    #[inline]
    pub(super) const fn vector(&self) -> &Vector {
        match self.stage {
            Stage::Transfer if !self.detour => &self.guest,
            _ => &self.own,
        }
    }

    /// The range of a step that allocates.
    #[inline]
    pub(super) const fn range(&self) -> (u64, u64) {
        (self.offset, self.len)
    }

    /// Takes in the result of the last step: a count, or a negative error number. `Some` is the
    /// result of the operation, `None` asks for the next step.
    #[inline]
    pub(super) fn ended(
        &mut self,
        result: i64,
        ground: &Ground,
        detour: Option<Detour<'_>>,
    ) -> Option<i64> {
        if result == failure(Errno::INTR) || result == failure(Errno::AGAIN) {
            return None;
        }
        match self.stage {
            Stage::Transfer | Stage::Fill => match u64::try_from(result) {
                Ok(count) => self.progress(count, ground, detour),
                Err(_) => Some(result),
            },
            Stage::Sync => Some(result.min(0)),
            _ if result >= 0 && self.stage == Stage::Renew => {
                self.stage = Stage::Allocate;
                None
            }
            _ if result >= 0 => Some(0),
            _ if result == failure(Errno::OPNOTSUPP) => self.do_without(ground),
            _ => Some(result),
        }
    }

    //= spec/store.md#STO-7
    #[inline]
    fn progress(&mut self, count: u64, ground: &Ground, detour: Option<Detour<'_>>) -> Option<i64> {
        // Direct I/O cannot go on in the middle of a block.
        let count = count - count % u64::from(ground.alignment.offset);
        let vector = if self.stage == Stage::Transfer && !self.detour {
            &mut self.guest
        } else {
            &mut self.own
        };
        vector.advance(count);
        self.done += count;
        if count == 0 {
            if self.kind != OpKind::Read {
                return Some(failure(Errno::IO));
            }
            // Behind the end of a file that somebody has cut short.
            if let Err(errno) = ground.clear(vector) {
                return Some(failure(errno));
            }
            self.done = self.len;
        }
        if self.done < self.len {
            if self.stage == Stage::Fill && self.own.left() == 0 {
                ground.zeroes(self.len - self.done, &mut self.own);
            }
            return None;
        }
        match (self.kind, detour) {
            (OpKind::Read, Some(detour)) if self.detour => {
                let landed = self.guest.read_all(detour.file, detour.at);
                Some(landed.map_or_else(failure, |()| self.moved()))
            }
            (OpKind::Read | OpKind::Write, _) => Some(self.moved()),
            _ => Some(0),
        }
    }

    /// The file system cannot do the last step: the next best.
    //= spec/store.md#STO-10
    fn do_without(&mut self, ground: &Ground) -> Option<i64> {
        let OpKind::WriteZeroes { unmap } = self.kind else {
            ground.punch.rule_out();
            // What is discarded may keep its bytes.
            return Some(0);
        };
        match self.stage {
            Stage::Punch | Stage::Renew => ground.punch.rule_out(),
            Stage::ZeroRange => ground.zero_range.rule_out(),
            // The zeroes are there, only their space is not reserved.
            _ => return Some(0),
        }
        self.stage = first_zeroing(unmap, ground);
        if self.stage == Stage::Fill {
            ground.zeroes(self.len, &mut self.own);
        }
        None
    }

    #[inline]
    fn moved(&self) -> i64 {
        i64::try_from(self.len).unwrap_or(i64::MAX)
    }
}

/// The best way to zeroes: giving space back only where the guest allows it.
//= spec/store.md#STO-9
fn first_zeroing(unmap: bool, ground: &Ground) -> Stage {
    match (ground.punch.is_there(), ground.zero_range.is_there()) {
        (true, _) if unmap => Stage::Punch,
        (_, true) => Stage::ZeroRange,
        (true, false) => Stage::Renew,
        (false, false) => Stage::Fill,
    }
}

/// An error as a result.
#[inline]
pub(super) fn failure(errno: Errno) -> i64 {
    -i64::from(errno.raw_os_error())
}
