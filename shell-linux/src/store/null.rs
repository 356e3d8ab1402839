//! An image that moves nothing.

use std::fmt;

use sluice_core::image::{Backing, ImageConfig};
use sluice_core::limits::SECTOR_BYTES;
use sluice_core::op::{Op, OpKind};

/// Answers every operation at once and touches no byte: what is left is the cost of the rest.
///
/// A read leaves the guest's buffers as they were, so there is nothing to boot from and nothing
/// that reads back.
#[derive(Clone, Copy, Debug)]
pub struct Null {
    bytes: u64,
}

impl Null {
    pub(super) const fn new(bytes: u64) -> Self {
        Self { bytes }
    }

    pub(super) const fn config(&self) -> ImageConfig {
        ImageConfig {
            backing: Backing::Store,
            capacity_sectors: self.bytes / SECTOR_BYTES,
            block_bytes: 512,
            read_only: false,
            discard: true,
            write_zeroes: true,
            poisoned: false,
            in_turn: false,
        }
    }

    //= spec/store.md#STO-1
    #[inline]
    pub(super) fn submit(self, op: &Op) -> i64 {
        match op.kind {
            OpKind::Read | OpKind::Write => i64::try_from(op.len).unwrap_or(i64::MAX),
            OpKind::Sync | OpKind::Discard | OpKind::WriteZeroes { .. } => 0,
        }
    }
}

impl fmt::Display for Null {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "null image of {} bytes, no bytes are moved", self.bytes)
    }
}
