//! What a driver is asked to send, and how its bytes are spread over descriptors.

use sluice_core::blk::request::{
    RangeWire, TYPE_DISCARD, TYPE_FLUSH, TYPE_GET_ID, TYPE_IN, TYPE_OUT, TYPE_WRITE_ZEROES,
};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Fill the buffers.
    Read,
    /// Store the buffers.
    Write,
    /// Make completed writes durable.
    Flush,
    /// Fill the buffers with the serial.
    GetId,
    /// Give up the ranges' contents.
    Discard,
    /// Zero the ranges.
    WriteZeroes,
    /// Any other type.
    Other {
        /// The header's type.
        kind: u32,
        /// Whether the device may write the buffers.
        writable: bool,
    },
}

impl Kind {
    /// The header's type.
    #[must_use]
    pub const fn wire(self) -> u32 {
        match self {
            Self::Read => TYPE_IN,
            Self::Write => TYPE_OUT,
            Self::Flush => TYPE_FLUSH,
            Self::GetId => TYPE_GET_ID,
            Self::Discard => TYPE_DISCARD,
            Self::WriteZeroes => TYPE_WRITE_ZEROES,
            Self::Other { kind, .. } => kind,
        }
    }

    /// Whether the device writes the buffers.
    #[must_use]
    pub const fn fills_buffers(self) -> bool {
        matches!(self, Self::Read | Self::GetId | Self::Other { writable: true, .. })
    }
}

/// One contiguous piece of data in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
}

/// How header, data and status become descriptors. Every shape is legal: without
/// `VIRTIO_F_ANY_LAYOUT`'s predecessors there is no framing to rely on (virtio 1.2, 2.7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of the header in its first descriptor, a second one has the rest; 16 and more, or
    /// 0, for one descriptor.
    pub header_cut: u8,
    /// The header lies in the 16 bytes before the first buffer, inside one descriptor with it.
    /// The buffer has to lie in the driver's own region; only for buffers the device reads.
    pub header_inline: bool,
    /// The status byte lies behind the last buffer, inside one descriptor with it. The buffer
    /// has to lie in the driver's own region; only for buffers the device writes.
    pub status_inline: bool,
    /// The chain is a table of its own behind one descriptor, if it fits.
    pub indirect: bool,
}

impl Shape {
    /// Header, buffers and status in descriptors of their own: what drivers do.
    pub const PLAIN: Self =
        Self { header_cut: 16, header_inline: false, status_inline: false, indirect: false };
    /// The same behind one descriptor.
    pub const INDIRECT: Self =
        Self { header_cut: 16, header_inline: false, status_inline: false, indirect: true };
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct RequestSpec<'a> {
    /// What it does.
    pub kind: Kind,
    /// First sector.
    pub sector: u64,
    /// Its data.
    pub buffers: &'a [Buffer],
    /// Ranges of a discard or write-zeroes, at most `limits::RANGES_MAX`. The driver keeps their
    /// bytes, so `buffers` stays empty.
    pub ranges: &'a [RangeWire],
    /// How it is spread over descriptors.
    pub shape: Shape,
    /// The device may only read the status byte, so that nobody hears how it ended. Not together
    /// with an inline status.
    pub silent: bool,
}

impl<'a> RequestSpec<'a> {
    /// A read.
    #[must_use]
    pub const fn read(sector: u64, buffers: &'a [Buffer]) -> Self {
        Self { kind: Kind::Read, sector, buffers, ranges: &[], shape: Shape::PLAIN, silent: false }
    }

    /// A write.
    #[must_use]
    pub const fn write(sector: u64, buffers: &'a [Buffer]) -> Self {
        Self { kind: Kind::Write, sector, buffers, ranges: &[], shape: Shape::PLAIN, silent: false }
    }

    /// A flush.
    #[must_use]
    pub const fn flush() -> Self {
        Self {
            kind: Kind::Flush,
            sector: 0,
            buffers: &[],
            ranges: &[],
            shape: Shape::PLAIN,
            silent: false,
        }
    }

    /// A discard.
    #[must_use]
    pub const fn discard(ranges: &'a [RangeWire]) -> Self {
        Self {
            kind: Kind::Discard,
            sector: 0,
            buffers: &[],
            ranges,
            shape: Shape::PLAIN,
            silent: false,
        }
    }

    /// A write-zeroes.
    #[must_use]
    pub const fn write_zeroes(ranges: &'a [RangeWire]) -> Self {
        Self {
            kind: Kind::WriteZeroes,
            sector: 0,
            buffers: &[],
            ranges,
            shape: Shape::PLAIN,
            silent: false,
        }
    }

    /// The same request in another shape.
    #[must_use]
    pub const fn shaped(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// Whether the header shares a descriptor with the first buffer.
    pub(super) const fn header_inline(&self) -> bool {
        self.shape.header_inline && !self.kind.fills_buffers() && !self.buffers.is_empty()
    }

    /// Whether the status shares a descriptor with the last buffer.
    pub(super) const fn status_inline(&self) -> bool {
        self.shape.status_inline && self.kind.fills_buffers() && !self.buffers.is_empty()
    }

    /// Bytes of the header in its first descriptor, when there is a second one.
    pub(super) const fn header_cut(&self) -> Option<u32> {
        match self.shape.header_cut {
            cut @ 1..16 if !self.header_inline() => Some(cut as u32),
            _ => None,
        }
    }

    /// Descriptors of the chain, an indirect one's own place not counted.
    #[inline]
    pub(super) fn descriptors(&self) -> usize {
        let header = if self.header_cut().is_some() { 2 } else { 1 };
        let shared = usize::from(self.header_inline()) + usize::from(self.status_inline());
        header + usize::from(!self.ranges.is_empty()) + self.buffers.len() + 1 - shared
    }
}
