//! Operations: the values that leave the shard to be carried out, and what comes back.
//!
//! This is the cut between what knows rings and what knows bytes. An embedded store carries an
//! operation out on a file; sessions turn it into messages to an OSD; the simulator does as it
//! likes with it.

use crate::image::ImageId;
use crate::memory::Segment;
use crate::placement::{ClusterId, OsdNum};
use crate::slots::SlotId;

/// Names an operation until its reply; a late reply to a recycled name is recognised.
pub type OpId = SlotId;

/// Who is to carry an operation out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Target {
    /// The embedded store, on this image.
    Store(ImageId),
    /// An OSD of a cluster.
    Osd(ClusterId, OsdNum),
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum OpKind {
    /// Fill the pieces from the range.
    Read,
    /// Store the pieces at the range.
    Write,
    /// Make what was written durable. The range is empty.
    Sync,
    /// Give the range's contents up; what is read afterwards is the old bytes or zeroes.
    Discard,
    /// Make the range read as zeroes.
    WriteZeroes {
        /// Whether its space may be given back.
        unmap: bool,
    },
}

/// One operation. Its payload stays where it is: see [`Shard::pieces`](crate::shard::Shard::pieces).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Op {
    /// To be handed back in the [`Reply`].
    pub id: OpId,
    /// Who carries it out.
    pub target: Target,
    /// What to do.
    pub kind: OpKind,
    /// The image's number in its cluster; 0 in the embedded store.
    pub inode: u64,
    /// First byte of the image.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// For conditional operations the version the object has to get; 0 for no condition.
    pub version: u64,
    /// For reads through layers the revision of their description; 0 for a single layer.
    pub meta_revision: u64,
}

/// A piece of an operation's payload, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Guest memory, to be read by a write and filled by a read.
    Guest(Segment),
    /// Bytes to throw away: their landing place is gone.
    Skip(u64),
}

/// The end of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Reply {
    /// Of the operation.
    pub id: OpId,
    /// For reads and writes the bytes moved, otherwise 0; negative is a Linux error number.
    pub result: i64,
    /// The object's version after the operation; 0 in the embedded store.
    pub version: u64,
}
