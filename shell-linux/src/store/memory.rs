//! An image in the process's own memory.

use std::fmt;

use anyhow::ensure;
use sluice_core::image::{Backing, ImageConfig};
use sluice_core::limits::SECTOR_BYTES;
use sluice_core::memory::OutOfRegion;
use sluice_core::op::{Op, OpKind, Piece};

use crate::mapping::{Mapping, Mappings};

/// Bytes that are gone when the process ends. Nothing sleeps, so every operation ends at once.
#[derive(Debug)]
pub struct Memory {
    bytes: Mapping,
}

impl Memory {
    pub(super) fn new(bytes: u64) -> anyhow::Result<Self> {
        ensure!(
            bytes > 0 && bytes.is_multiple_of(SECTOR_BYTES),
            "an image of {bytes} bytes cannot be shown as a disk: give a multiple of 512"
        );
        Ok(Self { bytes: Mapping::anonymous(bytes)? })
    }

    pub(super) fn config(&self) -> ImageConfig {
        ImageConfig {
            backing: Backing::Store,
            capacity_sectors: self.bytes.size() as u64 / SECTOR_BYTES,
            block_bytes: 512,
            read_only: false,
            discard: true,
            write_zeroes: true,
            poisoned: false,
            in_turn: true,
        }
    }

    //= spec/store.md#STO-2
    #[inline]
    pub(super) fn submit(
        &mut self,
        op: &Op,
        pieces: impl Iterator<Item = Piece>,
        mem: &Mappings,
    ) -> i64 {
        let done = match op.kind {
            OpKind::Read => {
                self.transfer(op, pieces, |segment, at| mem.copy_into(segment, &self.bytes, at))
            }
            OpKind::Write => {
                self.transfer(op, pieces, |segment, at| mem.copy_from(segment, &self.bytes, at))
            }
            OpKind::Sync => Ok(0),
            OpKind::Discard | OpKind::WriteZeroes { .. } => {
                self.bytes.zero(op.offset, op.len).map(|()| 0)
            }
        };
        done.map_or(-i64::from(libc::EFAULT), |moved| i64::try_from(moved).unwrap_or(i64::MAX))
    }

    #[inline]
    fn transfer(
        &self,
        op: &Op,
        pieces: impl Iterator<Item = Piece>,
        copy: impl Fn(sluice_core::memory::Segment, u64) -> Result<(), OutOfRegion>,
    ) -> Result<u64, OutOfRegion> {
        let mut moved = 0;
        for piece in pieces {
            match piece {
                Piece::Guest(segment) => {
                    copy(segment, op.offset + moved)?;
                    moved += u64::from(segment.len);
                }
                Piece::Skip(len) if op.kind == OpKind::Read => moved += len,
                // There is nothing to store any more.
                Piece::Skip(_) => return Err(OutOfRegion),
            }
        }
        Ok(moved)
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image of {} bytes in memory, lost when the process ends", self.bytes.size())
    }
}
