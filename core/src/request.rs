//! A request under way: a cursor that cuts parts on demand, and the join of their ends.

use crate::blk::{Range, Status};
use crate::image::Cut;
use crate::limits::{PARTS_PER_REQUEST_MAX, RANGES_MAX, SEGMENTS_MAX};
use crate::memory::{RegionSet, Segment};
use crate::op::{OpKind, Piece, Reply};
use crate::planted::{Fault, planted};
use crate::virtqueue::ChainToken;

/// What a request does to the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum RequestKind {
    /// Fill the data segments.
    Read,
    /// Store the data segments.
    Write,
    /// Sync whoever holds completed writes.
    Flush,
    /// Discard the ranges.
    Discard,
    /// Zero the ranges.
    WriteZeroes,
    /// Nothing: answered when it was parsed.
    Answered,
}

/// A request from the moment its chain is taken until the chain is given back.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The queue it came from, as a place in the shard's pool.
    pub(crate) queue: u32,
    /// Its device and the image, likewise.
    pub(crate) device: u32,
    pub(crate) image: u32,
    pub(crate) kind: RequestKind,
    pub(crate) token: ChainToken,
    /// The status so far: the first that is not `Ok` stays.
    pub(crate) status: Status,
    /// Where the status byte goes; of no length when it goes nowhere.
    pub(crate) status_at: Segment,
    /// Bytes that a read delivers into the guest's buffers.
    pub(crate) delivers: u32,
    /// The regions that have to stay mapped for it.
    pub(crate) regions: RegionSet,
    /// First data segment.
    pub(crate) first_segment: u16,
    pub(crate) segments: u16,
    pub(crate) cursor: Cursor,
    /// Parts that have not ended.
    pub(crate) parts_live: u16,
    /// Whether it stands in a list, waiting for its next part to be cut.
    pub(crate) listed: bool,
    /// Whether what it writes has to be stable when it is given back.
    pub(crate) through: bool,
    /// Whether it is not given back: its front end has gone, and its buffers with it, or it is
    /// left to be taken again.
    pub(crate) orphaned: bool,
}

/// What of a request has not been cut yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    /// Next byte of the image.
    offset: u64,
    /// Bytes left from there: of the payload, or of the current range.
    len: u64,
    /// Payload bytes cut so far.
    skip: u64,
    /// Steps begun, of how many: a range, or a look for somebody to sync.
    pub(crate) step: u32,
    steps: u32,
}

impl Cursor {
    pub(crate) const DONE: Self = Self { offset: 0, len: 0, skip: 0, step: 0, steps: 0 };

    pub(crate) const fn payload(offset: u64, len: u64) -> Self {
        Self { offset, len, ..Self::DONE }
    }

    pub(crate) const fn steps(count: u32) -> Self {
        Self { steps: count, ..Self::DONE }
    }

    #[inline]
    pub(crate) const fn is_done(&self) -> bool {
        self.len == 0 && self.step == self.steps
    }
}

/// A piece of a request inside one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The request, as a place in the shard's pool.
    pub(crate) request: u32,
    /// Payload bytes of the request before this part.
    pub(crate) skip: u64,
    /// Bytes.
    pub(crate) len: u64,
    pub(crate) kind: OpKind,
}

impl Part {
    /// A place for a part.
    pub const EMPTY: Self = Self { request: 0, skip: 0, len: 0, kind: OpKind::Sync };

    /// What its operation's reply means for the request.
    //= spec/blk.md#BLK-13
    #[inline]
    pub(crate) fn outcome(&self, reply: &Reply) -> Status {
        let moved = match self.kind {
            OpKind::Read | OpKind::Write => i64::try_from(self.len).unwrap_or(i64::MAX),
            OpKind::Sync | OpKind::Discard | OpKind::WriteZeroes { .. } => 0,
        };
        if reply.result == moved { Status::Ok } else { Status::IoErr }
    }
}

/// A range of the image that one operation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) skip: u64,
    pub(crate) kind: OpKind,
}

impl Request {
    /// A place for a request.
    pub const EMPTY: Self = Self {
        queue: 0,
        device: 0,
        image: 0,
        kind: RequestKind::Answered,
        token: ChainToken(0),
        status: Status::Ok,
        status_at: Segment::EMPTY,
        delivers: 0,
        regions: RegionSet::EMPTY,
        first_segment: 0,
        segments: 0,
        cursor: Cursor::DONE,
        parts_live: 0,
        listed: false,
        through: false,
        orphaned: false,
    };

    /// Where its data lands in guest memory: for a read, its data segments.
    pub(crate) fn landing<'s>(&self, chain: &'s [Segment; SEGMENTS_MAX]) -> &'s [Segment] {
        let first = usize::from(self.first_segment);
        match self.delivers {
            0 => &[],
            _ => &chain[first..first + usize::from(self.segments)],
        }
    }

    /// The next slice, without moving on; `None` when all is cut.
    #[inline]
    pub(crate) fn peek_slice<'r>(
        &mut self,
        cut: Cut,
        ranges: impl FnOnce() -> &'r [Range; RANGES_MAX],
    ) -> Option<Slice> {
        let cursor = &mut self.cursor;
        let kind = match self.kind {
            RequestKind::Read => OpKind::Read,
            RequestKind::Write => OpKind::Write,
            RequestKind::Flush => {
                let slice = Slice { offset: 0, len: 0, skip: 0, kind: OpKind::Sync };
                return (!cursor.is_done()).then_some(slice);
            }
            RequestKind::Discard | RequestKind::WriteZeroes => {
                let ranges = ranges();
                if cursor.len == 0 && cursor.step < cursor.steps {
                    let range = ranges[cursor.step as usize];
                    (cursor.offset, cursor.len) = (range.offset, range.len);
                    cursor.step += 1;
                }
                let current = ranges[cursor.step.saturating_sub(1) as usize];
                match self.kind {
                    RequestKind::Discard => OpKind::Discard,
                    _ => OpKind::WriteZeroes { unmap: current.unmap },
                }
            }
            RequestKind::Answered => return None,
        };
        if cursor.len == 0 {
            return None;
        }
        let payload = matches!(kind, OpKind::Read | OpKind::Write);
        let len = cut.first_part(cursor.offset, cursor.len, payload);
        Some(Slice { offset: cursor.offset, len, skip: cursor.skip, kind })
    }

    /// Whether something of it has not been sent.
    pub(crate) const fn has_unsent(&self) -> bool {
        !self.cursor.is_done() || self.through
    }

    /// Its payload is written: it becomes the flush that its driver does not send.
    pub(crate) const fn flush(&mut self, holders: u32) {
        self.through = false;
        self.kind = RequestKind::Flush;
        self.cursor = Cursor::steps(holders);
    }

    /// Moves past a slice, which becomes a part.
    #[inline]
    pub(crate) fn advance(&mut self, slice: &Slice) {
        match slice.kind {
            OpKind::Sync => self.cursor.step += 1,
            OpKind::Read | OpKind::Write => self.cursor.skip += slice.len,
            OpKind::Discard | OpKind::WriteZeroes { .. } => {}
        }
        self.cursor.offset += slice.len;
        self.cursor.len -= slice.len;
        self.parts_live += 1;
    }

    /// Whether another part may be cut now.
    #[inline]
    pub(crate) const fn wants_cut(&self) -> bool {
        !self.cursor.is_done() && self.parts_live < PARTS_PER_REQUEST_MAX
    }

    /// Takes the end of a part in. After a failure nothing more is cut.
    //= spec/blk.md#BLK-14
    #[inline]
    pub(crate) fn join(&mut self, outcome: Status) {
        self.parts_live -= 1;
        if outcome != Status::Ok && !planted(Fault::FailureForgotten) {
            self.fail(outcome);
        }
    }

    /// Fails the request: what has not been cut will not be.
    pub(crate) fn fail(&mut self, status: Status) {
        if self.status == Status::Ok {
            self.status = status;
        }
        self.cursor = Cursor::DONE;
    }

    /// Whether all parts have ended and no more will be cut.
    #[inline]
    pub(crate) const fn is_done(&self) -> bool {
        self.parts_live == 0 && self.cursor.is_done()
    }

    /// What the used entry says: the bytes written, the status byte included.
    //= spec/virtqueue.md#VQ-10
    #[inline]
    pub(crate) fn used_len(&self) -> u32 {
        if self.status_at.len == 0 {
            return 0;
        }
        match self.status {
            Status::Ok if planted(Fault::UsedLength) => self.delivers,
            Status::Ok => self.delivers + 1,
            Status::IoErr | Status::Unsupported => 1,
        }
    }
}

/// The payload of a part, piece by piece.
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    segments: &'a [Segment],
    skip: u64,
    len: u64,
    gone: bool,
}

impl<'a> Pieces<'a> {
    /// The pieces of `part`, whose request has its segments in `chain`. When the landing place
    /// is gone they are skipped; a write that was sent is still sent to its end, from memory
    /// that stays mapped for it.
    #[inline]
    pub(crate) fn new(request: &Request, part: &Part, chain: &'a [Segment; SEGMENTS_MAX]) -> Self {
        let len = match part.kind {
            OpKind::Read | OpKind::Write => part.len,
            OpKind::Sync | OpKind::Discard | OpKind::WriteZeroes { .. } => 0,
        };
        let first = usize::from(request.first_segment);
        let segments = &chain[first..first + usize::from(request.segments)];
        let gone = request.orphaned && (part.kind == OpKind::Read || planted(Fault::PayloadLost));
        Self { segments, skip: part.skip, len, gone }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    #[inline]
    fn next(&mut self) -> Option<Piece> {
        if self.len == 0 {
            return None;
        }
        if self.gone {
            return Some(Piece::Skip(core::mem::take(&mut self.len)));
        }
        loop {
            let (first, rest) = self.segments.split_first()?;
            self.segments = rest;
            let Some(left) = u64::from(first.len).checked_sub(self.skip).filter(|&l| l > 0) else {
                self.skip -= u64::from(first.len);
                continue;
            };
            let offset = first.offset + core::mem::take(&mut self.skip);
            let len = u32::try_from(left.min(self.len)).unwrap_or(first.len);
            self.len -= u64::from(len);
            return Some(Piece::Guest(Segment::new(first.region(), offset, len)));
        }
    }
}
