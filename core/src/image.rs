//! Images: what a device shows to its guest, and how its bytes are cut into objects.

use crate::blk::Limits;
use crate::blk::config::BlkFeatures;
use crate::limits::SECTOR_BYTES;
use crate::placement::{ClusterId, PoolId};
use crate::planted::{Fault, planted};
use crate::slots::Fifo;

/// An image's place in its shard, chosen by the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ImageId(pub u32);

/// Where an image's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Backing {
    /// The embedded store: the shell carries out operations on the image itself.
    Store,
    /// An image in a cluster.
    Cluster {
        /// Which cluster.
        cluster: ClusterId,
        /// The pool that holds it.
        pool: PoolId,
        /// Its number, the pool in the top 16 bits.
        inode: u64,
    },
}

/// What the shell says of an image when it brings one in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ImageConfig {
    /// Where its bytes are.
    pub backing: Backing,
    /// Sectors of 512 bytes.
    pub capacity_sectors: u64,
    /// Bytes in a logical block: a power of two from 512.
    pub block_bytes: u32,
    /// Whether guests may not write.
    pub read_only: bool,
    /// Whether the store can discard.
    pub discard: bool,
    /// Whether the store can write zeroes.
    pub write_zeroes: bool,
    /// Whether an earlier sync failed: reads go on, everything that modifies fails.
    pub poisoned: bool,
    /// Whether operations are carried out, or their bytes moved, inside the turn that hands them
    /// out. They cost others their length then, so they are cut.
    pub in_turn: bool,
}

impl ImageConfig {
    /// What requests of a device with these negotiated features have to keep to.
    #[must_use]
    pub fn limits(&self, features: BlkFeatures) -> Limits {
        Limits {
            capacity_sectors: self.capacity_sectors,
            block_sectors: (u64::from(self.block_bytes) / SECTOR_BYTES).max(1),
            read_only: self.read_only,
            poisoned: self.poisoned,
            features,
        }
    }
}

/// Whether this host may do I/O on the image. Asked for at the first I/O, not before, so that a
/// migration's destination can connect while the source still writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Capture {
    /// Not asked for.
    None,
    /// Asked for; requests wait.
    Asked,
    /// Held.
    Granted,
}

/// An image of a shard. Several devices may show the same one.
#[derive(Clone, Debug)]
pub struct Image {
    /// As brought in, `poisoned` as it is now.
    pub config: ImageConfig,
    /// Whether I/O is allowed.
    pub capture: Capture,
    /// Devices that show it.
    pub devices: u32,
    /// Requests that wait for the capture.
    pub(crate) waiting: Fifo<0>,
    /// What the shell has not been told yet.
    pub(crate) news: Option<CaptureNews>,
    /// Whether the shell has to hear that it is poisoned.
    pub(crate) newly_poisoned: bool,
    /// Whether it stands in the list of images with news.
    pub(crate) listed: bool,
}

/// What the shell is to do about a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CaptureNews {
    Take,
    /// Give it up, which was asked for or held until now.
    GiveUp(Capture),
}

impl Image {
    /// A place for an image.
    pub const VACANT: Self = Self::new(ImageConfig {
        backing: Backing::Store,
        capacity_sectors: 0,
        block_bytes: 512,
        read_only: true,
        discard: false,
        write_zeroes: false,
        poisoned: false,
        in_turn: false,
    });

    /// An image nobody has used yet.
    #[must_use]
    pub const fn new(config: ImageConfig) -> Self {
        Self {
            config,
            capture: Capture::None,
            devices: 0,
            waiting: Fifo::EMPTY,
            news: None,
            newly_poisoned: false,
            listed: false,
        }
    }
}

impl Image {
    /// Nobody uses it any more.
    pub(crate) fn give_up(&mut self) {
        let was = core::mem::replace(&mut self.capture, Capture::None);
        self.news = match (self.news, was) {
            // The shell has not heard that it was to be taken.
            (Some(CaptureNews::Take), _) | (_, Capture::None) => None,
            _ => Some(CaptureNews::GiveUp(was)),
        };
    }

    /// The grant has come while it was about to be given up.
    pub(crate) fn granted_late(&mut self) {
        if let Some(CaptureNews::GiveUp(was)) = &mut self.news {
            *was = Capture::Granted;
        }
    }

    /// It is used again: if it was to be given up, and the shell has not heard of that, it is
    /// as it was.
    #[inline]
    pub(crate) fn keep(&mut self) {
        if let Some(CaptureNews::GiveUp(was)) = self.news {
            self.news = None;
            self.capture = was;
        }
    }
}

/// How an image's bytes are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Geometry {
    /// In one piece: only the length of an operation is bounded.
    Flat,
    /// In objects of this many bytes.
    Objects(u64),
}

impl Geometry {
    /// Bytes of a range of `len` from `offset` on that lie in its first object.
    #[inline]
    fn first_part(self, offset: u64, len: u64) -> u64 {
        match self {
            _ if planted(Fault::ObjectCrossed) => len,
            Self::Flat => len,
            Self::Objects(size) => len.min(size - offset % size),
        }
    }
}

/// How a request is cut into parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Where objects end.
    pub geometry: Geometry,
    /// Bytes that one part moves at most.
    pub moved: u64,
    /// Bytes that one part discards or zeroes at most.
    pub cleared: u64,
}

impl Cut {
    /// Bytes, from `offset` on, of the first part of a range of `len` bytes.
    ///
    /// Parts cover the range exactly, in order, and none crosses an object or is too long.
    /// `payload` says whether the bytes are moved.
    //= spec/placement.md#PLC-1
    //= spec/placement.md#PLC-2
    #[must_use]
    #[inline]
    pub fn first_part(self, offset: u64, len: u64, payload: bool) -> u64 {
        let most = if payload { self.moved } else { self.cleared };
        self.geometry.first_part(offset, len.min(most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PART_BYTES_MAX;
    use proptest::prelude::*;

    fn config() -> ProptestConfig {
        ProptestConfig {
            failure_persistence: Some(std::boxed::Box::new(
                proptest::test_runner::FileFailurePersistence::Direct(concat!(
                    env!("CARGO_MANIFEST_DIR"),
                    "/../proptest-regressions/image.txt"
                )),
            )),
            ..ProptestConfig::default()
        }
    }

    proptest! {
        #![proptest_config(config())]

        //= spec/placement.md#PLC-1
        //= spec/placement.md#PLC-2
        #[test]
        fn i11_parts_cover_a_request_exactly_and_cross_no_object(
            chunks in 1_u64..6,
            block_log in 12_u32..20,
            sector in 0_u64..1 << 40,
            sectors in 1_u64..1 << 14,
            payload: bool,
            flat: bool,
        ) {
            let object = chunks << block_log;
            let geometry = if flat { Geometry::Flat } else { Geometry::Objects(object) };
            let cut = Cut { geometry, moved: PART_BYTES_MAX, cleared: u64::MAX };
            let (mut at, end) = (sector * 512, (sector + sectors) * 512);
            while at < end {
                let part = cut.first_part(at, end - at, payload);
                prop_assert!(part > 0);
                prop_assert!(!payload || part <= PART_BYTES_MAX);
                prop_assert!(flat || at / object == (at + part - 1) / object);
                at += part;
            }
            prop_assert_eq!(at, end);
        }
    }
}
