//! The embedded store: images on this machine, one file each, and two that have no file.
//!
//! An operation of the core is carried out on an image. Some engines end it inside
//! [`Store::submit`], others hand it to the kernel or to a thread and return it from
//! [`Store::reap`]. What an image is made of and which engine serves it is decided once, when
//! it is opened.
//!
//! Operations name guest memory. The core keeps that mapped until it has been handed the reply
//! (`spec/lifecycle.md#LIF-9`), which is what makes it right to give the addresses to the kernel.

mod align;
mod apart;
mod aside;
pub(crate) mod bytes;
mod counters;
mod delayed;
mod engine;
mod file;
mod ground;
mod holder;
mod inline;
mod inquiry;
pub(crate) mod lock;
pub mod marker;
mod memory;
mod null;
mod options;
pub(crate) mod probe;
mod reach;
mod syncs;
mod threads;
mod uring;
mod vector;
mod watch;
mod work;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use sluice_core::image::ImageConfig;
use sluice_core::op::{Op, Piece, Reply};

pub use counters::Counters;
pub use delayed::Delayed;
pub use file::{FileStore, Resized};
pub use holder::Holder;
pub use lock::Captured;
pub use memory::Memory;
pub use null::Null;
pub use options::{EngineKind, OpenOptions};
pub use watch::{Change, Watch};

use crate::mapping::Mappings;

/// One image of the embedded store.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one an image, and it stays in its place")]
pub enum Store {
    /// Moves nothing.
    Null(Null),
    /// Lives and dies with the process.
    Memory(Memory),
    /// A raw file.
    File(FileStore),
    /// One of the others, with late answers.
    Delayed(Delayed),
}

impl Store {
    /// An image that moves no bytes, for measuring everything else.
    #[must_use]
    pub const fn null(bytes: u64) -> Self {
        Self::Null(Null::new(bytes))
    }

    /// An image in memory.
    ///
    /// # Errors
    /// When the size is no multiple of 512 or cannot be mapped.
    pub fn memory(bytes: u64) -> anyhow::Result<Self> {
        Ok(Self::Memory(Memory::new(bytes)?))
    }

    /// Opens the raw file at `path`.
    ///
    /// # Errors
    /// When it cannot be opened or is no image; the message says what to do.
    pub fn open(path: &Path, options: OpenOptions) -> anyhow::Result<Self> {
        Ok(Self::File(FileStore::open(path, options)?))
    }

    /// The same image with some answers up to so late, for tests.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn delayed(self, at_most: Duration, seed: u64) -> anyhow::Result<Self> {
        Ok(Self::Delayed(Delayed::new(self, at_most, seed)?))
    }

    /// What a device on this image shows.
    #[must_use]
    pub fn config(&self) -> ImageConfig {
        match self {
            Self::Null(null) => null.config(),
            Self::Memory(memory) => memory.config(),
            Self::File(file) => file.config(),
            Self::Delayed(delayed) => delayed.store.config(),
        }
    }

    /// What it is and how it is served, for the log.
    #[must_use]
    pub fn describe(&self) -> String {
        self.to_string()
    }

    /// Carries an operation out, or begins it.
    ///
    /// `Some` is its result: the bytes moved, 0, or a negative error number. `None` says that
    /// it will come out of [`reap`](Self::reap).
    #[inline]
    pub fn submit(
        &mut self,
        op: &Op,
        pieces: impl Iterator<Item = Piece>,
        mem: &Mappings,
    ) -> Option<i64> {
        match self {
            Self::Null(null) => Some(null.submit(op)),
            Self::Memory(memory) => Some(memory.submit(op, pieces, mem)),
            Self::File(file) => file.submit(op, pieces, mem),
            Self::Delayed(delayed) => delayed.submit(op, pieces, mem),
        }
    }

    /// Hands everything that was begun since the last call over, in one go.
    #[inline]
    pub fn kick(&mut self) {
        match self {
            Self::File(file) => file.kick(),
            Self::Delayed(delayed) => delayed.store.kick(),
            Self::Null(_) | Self::Memory(_) => {}
        }
    }

    /// The next operation that has ended. Ask until there is none: what waits for room in an
    /// engine goes on then.
    #[inline]
    pub fn reap(&mut self) -> Option<Reply> {
        match self {
            Self::File(file) => file.reap(),
            Self::Delayed(delayed) => delayed.reap(),
            Self::Null(_) | Self::Memory(_) => None,
        }
    }

    /// Becomes readable when [`reap`](Self::reap) may have something, and stays so until it has
    /// nothing. `None` for engines that end everything in [`submit`](Self::submit).
    #[must_use]
    pub fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::File(file) => file.wake_fd(),
            Self::Delayed(delayed) => Some(delayed.wake_fd()),
            Self::Null(_) | Self::Memory(_) => None,
        }
    }

    /// Tries to take the image for this host; to be asked again while it is held elsewhere.
    pub fn capture(&mut self) -> Captured {
        match self {
            Self::File(file) => file.capture(),
            Self::Delayed(delayed) => delayed.store.capture(),
            Self::Null(_) | Self::Memory(_) => Captured::Yes,
        }
    }

    /// The image's file, for whoever looks at what becomes of it; `None` where there is none.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn watch(&self) -> std::io::Result<Option<Watch>> {
        match self {
            Self::File(file) => file.watch().map(Some),
            Self::Delayed(delayed) => delayed.store.watch(),
            Self::Null(_) | Self::Memory(_) => Ok(None),
        }
    }

    /// The image's file has another size.
    pub fn resized(&mut self, bytes: u64) -> Resized {
        match self {
            Self::File(file) => file.resized(bytes),
            Self::Delayed(delayed) => delayed.store.resized(bytes),
            Self::Null(_) | Self::Memory(_) => Resized::Kept,
        }
    }

    /// Gives the image up, as soon as nothing is under way.
    pub fn release(&mut self) {
        match self {
            Self::File(file) => file.release(),
            Self::Delayed(delayed) => delayed.store.release(),
            Self::Null(_) | Self::Memory(_) => {}
        }
    }

    /// Makes it last that a sync failed: the image opens poisoned from now on.
    ///
    /// # Errors
    /// When that could not be written down.
    pub fn poison(&mut self) -> anyhow::Result<()> {
        match self {
            Self::File(file) => file.poison(),
            Self::Delayed(delayed) => delayed.store.poison(),
            Self::Null(_) | Self::Memory(_) => Ok(()),
        }
    }

    /// What went wrong so far, in numbers.
    #[must_use]
    pub fn counters(&self) -> Counters {
        match self {
            Self::File(file) => file.counters(),
            Self::Delayed(delayed) => delayed.store.counters(),
            Self::Null(_) | Self::Memory(_) => Counters::default(),
        }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null(null) => null.fmt(f),
            Self::Memory(memory) => memory.fmt(f),
            Self::File(file) => file.fmt(f),
            Self::Delayed(delayed) => delayed.fmt(f),
        }
    }
}
