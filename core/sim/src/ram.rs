//! An image in the simulator's own memory, for operations that are carried out at once.

use std::collections::BTreeMap;

use sluice_core::memory::SharedMemory;
use sluice_core::op::{Op, OpKind, Piece, Reply};

const SECTOR: usize = 512;

/// Sectors that have been written; the others read as zeroes.
#[derive(Clone, Debug, Default)]
pub struct Ram {
    sectors: BTreeMap<u64, [u8; SECTOR]>,
}

impl Ram {
    /// Carries an operation out, byte by byte and in the order of its pieces.
    ///
    /// # Panics
    /// When it moves something else than whole sectors: the core never asks for that.
    pub fn carry_out(
        &mut self,
        mem: &impl SharedMemory,
        op: &Op,
        pieces: impl Iterator<Item = Piece>,
    ) -> Reply {
        let result = match op.kind {
            OpKind::Read => self.read(mem, op, pieces),
            OpKind::Write => self.write(mem, op, pieces),
            OpKind::Sync => 0,
            OpKind::Discard | OpKind::WriteZeroes { .. } => {
                let (first, count) = (op.offset / 512, op.len / 512);
                self.sectors.retain(|&sector, _| !(first..first + count).contains(&sector));
                0
            }
        };
        Reply { id: op.id, result, version: 0 }
    }

    fn read(&self, mem: &impl SharedMemory, op: &Op, pieces: impl Iterator<Item = Piece>) -> i64 {
        let mut at = op.offset;
        for piece in pieces {
            match piece {
                Piece::Guest(to) => {
                    for offset in 0..u64::from(to.len) {
                        let byte = self.byte(at + offset);
                        mem.write(to.region(), to.offset + offset, &byte).expect("held memory");
                    }
                    at += u64::from(to.len);
                }
                Piece::Skip(len) => at += len,
            }
        }
        moved(at - op.offset)
    }

    fn write(
        &mut self,
        mem: &impl SharedMemory,
        op: &Op,
        pieces: impl Iterator<Item = Piece>,
    ) -> i64 {
        let mut at = op.offset;
        for piece in pieces {
            match piece {
                Piece::Guest(from) => {
                    for offset in 0..u64::from(from.len) {
                        let byte = mem.read(from.region(), from.offset + offset);
                        self.set(at + offset, byte.expect("held memory"));
                    }
                    at += u64::from(from.len);
                }
                // There is nothing to store any more.
                Piece::Skip(_) => return -i64::from(5),
            }
        }
        moved(at - op.offset)
    }

    /// A byte of the image.
    #[must_use]
    pub fn byte(&self, at: u64) -> u8 {
        let sector = self.sectors.get(&(at / SECTOR as u64));
        sector.map_or(0, |sector| sector[within(at)])
    }

    /// Stores a byte of the image.
    pub fn set(&mut self, at: u64, byte: u8) {
        self.sectors.entry(at / SECTOR as u64).or_insert([0; SECTOR])[within(at)] = byte;
    }
}

fn within(at: u64) -> usize {
    usize::try_from(at % SECTOR as u64).expect("less than a sector")
}

fn moved(bytes: u64) -> i64 {
    i64::try_from(bytes).expect("less than an image")
}
