//! What a checker has to say.

use core::fmt;

use super::Stamp;

/// A read that no legal order of the history explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The sector that was read.
    pub sector: u64,
    /// What is wrong with it.
    pub wrong: Wrong,
}

/// What is wrong with a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It holds a value that a later one has surely replaced.
    Stale {
        /// What was found, if it was not zeroes.
        found: Option<Stamp>,
        /// The request that replaced it, where that is still known.
        superseded_by: Option<u64>,
    },
    /// It holds a stamp that was never written there.
    Invented(Stamp),
    /// It holds what was meant for another sector.
    WrongSector(Stamp),
    /// It holds parts of different writes.
    Torn {
        /// What its head says.
        found: Stamp,
        /// The first byte that does not belong to it.
        at: usize,
    },
    /// It holds zeroes that nobody wrote, or that were replaced long ago.
    Zeroes,
    /// It holds bytes of no write of this history, nor what it held before.
    Garbage,
}

impl core::error::Error for Violation {}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sector {}: ", self.sector)?;
        match &self.wrong {
            Wrong::Stale { found, superseded_by } => {
                match found {
                    Some(stamp) => write!(f, "stale data of {stamp}")?,
                    None => f.write_str("stale zeroes or older contents")?,
                }
                match superseded_by {
                    Some(by) => write!(f, ", replaced for good by request {by}"),
                    None => f.write_str(", replaced for good long ago"),
                }
            }
            Wrong::Invented(stamp) => write!(f, "{stamp}, which was never sent there"),
            Wrong::WrongSector(stamp) => {
                write!(f, "data of sector {} ({stamp})", stamp.sector)
            }
            Wrong::Torn { found, at } => write!(f, "{found}, but from byte {at} on something else"),
            Wrong::Zeroes => {
                f.write_str("zeroes that nobody wrote, or that were replaced long ago")
            }
            Wrong::Garbage => f.write_str("bytes that nobody wrote"),
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {} by writer {}", self.sequence, self.writer)
    }
}
