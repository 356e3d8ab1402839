//! An image that is a raw file.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, ensure};
use rustix::io::Errno;
use sluice_core::image::{Backing, ImageConfig};
use sluice_core::limits::SECTOR_BYTES;
use sluice_core::op::{Op, OpKind, Piece, Reply};

use super::align::Alignment;
use super::counters::{Counters, Failures};
use super::engine::Engine;
use super::ground::Ground;
use super::inquiry::Inquiry;
use super::lock::{self, Access, Captured, Obstacle};
use super::options::OpenOptions;
use super::reach::Reach;
use super::syncs::Syncs;
use super::watch::Watch;
use super::work::failure;
use super::{bytes, marker, probe};
use crate::mapping::Mappings;
use crate::size::show_size;

/// A raw file and the engine that serves it.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    bytes: u64,
    config: ImageConfig,
    how: String,
    engine: Engine,
    syncs: Syncs,
    captured: bool,
    in_the_way: Inquiry,
    /// To be given up when the last operation has ended.
    leaving: bool,
    /// A sync failed: what modifies fails from then on, whatever the caller does.
    sync_failed: bool,
    underway: u32,
    reach: Reach,
    failures: Failures,
}

/// What becomes of an image whose file has another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resized {
    /// It has that size too.
    Followed,
    /// It keeps its own: the other is none for an image.
    Kept,
    /// The file has got the image's size back.
    Undone,
}

impl FileStore {
    //= spec/store.md#STO-3
    pub(super) fn open(path: &Path, options: OpenOptions) -> anyhow::Result<Self> {
        let shown = path.display();
        ensure!(
            matches!(options.block_bytes, 512 | 4096),
            "a logical block has 512 or 4096 bytes, not {}",
            options.block_bytes
        );
        // The mark of a poisoned image lies beside the file itself, not beside a link to it.
        let path = path.canonicalize().with_context(|| format!("cannot open image {shown}"))?;
        let file = probe::open_plain(&path, options.read_only)?;
        let block_bytes = probe::block_of(&file)?.max(options.block_bytes);
        let options = OpenOptions { block_bytes, ..options };
        let bytes = probe::size_of(&file).with_context(|| format!("cannot measure {shown}"))?;
        let block = u64::from(block_bytes);
        ensure!(
            bytes > 0 && bytes.is_multiple_of(SECTOR_BYTES),
            "{shown} has {bytes} bytes; an image has a multiple of 512, and not 0: resize it"
        );
        ensure!(
            bytes.is_multiple_of(block),
            "{shown} has {bytes} bytes, no multiple of its logical block of {block}: resize it"
        );
        let (file, way) = probe::open_best(&path, file, options, bytes)?;
        bytes::serve(&file, options.read_only);
        let discard = !options.read_only && probe::can_discard(&file, bytes);
        let mut config = ImageConfig {
            backing: Backing::Store,
            capacity_sectors: bytes / SECTOR_BYTES,
            block_bytes: options.block_bytes,
            read_only: options.read_only,
            discard,
            write_zeroes: !options.read_only,
            poisoned: marker::is_there(&path),
            in_turn: false,
        };
        let ground = Ground::new(file, &way)?;
        if !discard {
            ground.punch.rule_out();
        }
        let in_the_way = Inquiry::new(&ground.file)?;
        let (engine, served) = Engine::new(ground, options.engine)?;
        config.in_turn = engine.works_in_turn();
        let how = format!("engine {served}, {}", way.how);
        Ok(Self {
            path,
            bytes,
            config,
            how,
            engine,
            syncs: Syncs::default(),
            captured: false,
            in_the_way,
            leaving: false,
            sync_failed: false,
            underway: 0,
            reach: Reach::new(bytes),
            failures: Failures::default(),
        })
    }

    pub(super) const fn config(&self) -> ImageConfig {
        self.config
    }

    pub(super) fn watch(&self) -> std::io::Result<Watch> {
        Watch::new(&self.engine.ground().file, &self.path, Arc::clone(&self.reach.looks))
    }

    /// The file has another size.
    //= spec/store.md#STO-21
    pub(super) fn resized(&mut self, bytes: u64) -> Resized {
        let sound = bytes > 0 && bytes.is_multiple_of(u64::from(self.config.block_bytes));
        let regrown = self.reach.explains(bytes, self.underway == 0);
        if bytes < self.bytes && (regrown || !sound) && self.undo_cut() {
            return Resized::Undone;
        }
        if !sound {
            return Resized::Kept;
        }
        self.bytes = bytes;
        self.config.capacity_sectors = bytes / SECTOR_BYTES;
        Resized::Followed
    }

    /// Gives the file the image's size back, the last that somebody has certainly chosen.
    //= spec/store.md#STO-29
    #[cold]
    fn undo_cut(&self) -> bool {
        let file = &self.engine.ground().file;
        // Nobody writes what is read-only or not taken, and a device does not grow by writes.
        if self.config.read_only
            || !self.captured
            || !file.metadata().is_ok_and(|about| about.is_file())
        {
            return false;
        }
        // Somebody may have seen to it meanwhile, and is not to be cut short by this.
        if probe::size_of(file).is_ok_and(|bytes| bytes >= self.bytes) {
            return true;
        }
        let undone = file.set_len(self.bytes);
        let image = self.path.display();
        match &undone {
            Ok(()) => {
                self.reach.looks.found(self.bytes);
                tracing::warn!(
                    %image,
                    "the image has its size of {} back, as writes of its guest make it grow: it \
                     reads as zeroes where it was cut",
                    show_size(self.bytes)
                );
            }
            Err(error) => tracing::warn!(%image, %error, "cannot give the image its size back"),
        }
        undone.is_ok()
    }

    pub(super) const fn counters(&self) -> Counters {
        self.failures.counters
    }

    #[inline]
    pub(super) fn submit(
        &mut self,
        op: &Op,
        pieces: impl Iterator<Item = Piece>,
        mem: &Mappings,
    ) -> Option<i64> {
        let result = match self.check(op) {
            Ok(()) if self.syncs.hold(op) => None,
            Ok(()) => {
                if matches!(op.kind, OpKind::Write | OpKind::WriteZeroes { .. }) {
                    self.reach.begins(op.offset + op.len, self.underway == 0);
                }
                let result = self.engine.submit(op, pieces, mem);
                if result.is_none() && op.kind == OpKind::Sync {
                    self.syncs.begun(op);
                }
                result
            }
            Err(errno) => Some(failure(errno)),
        };
        match result {
            None => self.underway += 1,
            Some(result) => {
                self.reach.ended();
                self.look_at(result, op.kind, op.offset);
            }
        }
        result
    }

    #[inline]
    pub(super) fn kick(&mut self) {
        self.engine.kick();
    }

    #[inline]
    pub(super) fn reap(&mut self) -> Option<Reply> {
        let ended = loop {
            if let Some(ended) = self.syncs.reap() {
                break ended;
            }
            let ended = self.engine.reap()?;
            if ended.kind != OpKind::Sync {
                break ended;
            }
            self.next_sync(ended.result);
        };
        self.underway -= 1;
        self.reach.ended();
        if self.underway == 0 && self.leaving {
            self.give_up();
        }
        self.look_at(ended.result, ended.kind, ended.offset);
        Some(Reply { id: ended.id, result: ended.result, version: 0 })
    }

    /// The engine's sync has ended: gives it the next.
    fn next_sync(&mut self, mut result: i64) {
        while let Some(next) = self.syncs.over(result) {
            match self.engine.submit(&next, core::iter::empty(), &Mappings::default()) {
                Some(at_once) => result = at_once,
                None => return self.engine.kick(),
            }
        }
    }

    pub(super) fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.engine.wake_fd()
    }

    pub(super) fn capture(&mut self) -> Captured {
        self.leaving = false;
        if self.captured {
            return Captured::Yes;
        }
        let file = &self.engine.ground().file;
        let access = Access::Serve { read_only: self.config.read_only };
        if let Err(obstacle) = lock::take(file, access) {
            return match obstacle {
                Obstacle::Lock(lock) => self.in_the_way.ask(lock),
                Obstacle::Failed(errno) => lock::unlockable(errno),
            };
        }
        self.in_the_way.over();
        if let Err(error) = self.unchanged() {
            lock::give_back(&self.engine.ground().file);
            return Captured::Failed(error);
        }
        self.captured = true;
        Captured::Yes
    }

    /// Whether the image is what was opened, perhaps long before it could be taken.
    //= spec/store.md#STO-13
    fn unchanged(&self) -> anyhow::Result<()> {
        let path = self.path.display();
        let ours = self.engine.ground().file.metadata().context("cannot look at the image")?;
        let there = std::fs::metadata(&self.path).with_context(|| format!("{path} is gone"))?;
        let same = (ours.dev(), ours.ino()) == (there.dev(), there.ino());
        ensure!(same, "{path} has been replaced since it was opened: attach it again");
        // One that has grown is followed.
        let bytes =
            probe::size_of(&self.engine.ground().file).context("cannot measure the image")?;
        ensure!(
            bytes >= self.bytes,
            "{path} had {} bytes when it was opened and has {} now: attach it again",
            self.bytes,
            bytes
        );
        if marker::is_there(&self.path) && !self.config.poisoned {
            return Err(anyhow!("{path} was poisoned since it was opened: attach it again"));
        }
        Ok(())
    }

    pub(super) fn release(&mut self) {
        if self.underway > 0 {
            self.leaving = true;
        } else {
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        self.leaving = false;
        if core::mem::take(&mut self.captured) {
            lock::give_back(&self.engine.ground().file);
        }
    }

    pub(super) fn poison(&mut self) -> anyhow::Result<()> {
        self.config.poisoned = true;
        self.sync_failed = true;
        marker::set(&self.path)
    }

    /// What the core has seen to already, once more before bytes are moved.
    //= spec/store.md#STO-4
    #[inline]
    fn check(&self, op: &Op) -> Result<(), Errno> {
        if !self.captured {
            return Err(Errno::NOLCK);
        }
        if op.offset.checked_add(op.len).is_none_or(|end| end > self.bytes) {
            return Err(Errno::INVAL);
        }
        if op.kind == OpKind::Read {
            return Ok(());
        }
        if self.sync_failed {
            return Err(Errno::IO);
        }
        if self.config.read_only && op.kind != OpKind::Sync {
            return Err(Errno::ROFS);
        }
        Ok(())
    }

    #[inline]
    fn look_at(&mut self, result: i64, kind: OpKind, offset: u64) {
        if result < 0 {
            //= spec/store.md#STO-8
            self.sync_failed |= kind == OpKind::Sync;
            self.failures.note(&self.path, kind, offset, -result);
        }
    }
}

impl fmt::Display for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file {}, {} bytes, {}", self.path.display(), self.bytes, self.how)?;
        if self.config.read_only {
            f.write_str(", read-only")?;
        }
        if self.config.poisoned {
            f.write_str(", POISONED")?;
        }
        Ok(())
    }
}

//= spec/store.md#STO-15
impl Drop for FileStore {
    /// The kernel may still be writing to memory that the caller gives up next.
    fn drop(&mut self) {
        while self.underway > 0 {
            self.engine.wait();
            while self.reap().is_some() {}
        }
    }
}

/// How a file is reached.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) alignment: Alignment,
    /// Whether it may lead through the page cache.
    pub(super) cached: bool,
    pub(super) how: &'static str,
}
