//! System calls in the caller's thread.

use std::fs::File;

use rustix::fs::{MemfdFlags, fallocate, fdatasync, ftruncate, memfd_create};
use rustix::io::Errno;
use sluice_core::limits::PART_BYTES_MAX;

use super::ground::Ground;
use super::work::{Detour, Step, Work, failure};
use crate::mapping::Mapping;

/// Carries work out to its end.
pub(super) fn carry_out(work: &mut Work, ground: &Ground, aside: &mut Aside) -> i64 {
    let mut detour = None;
    if work.wants_detour(ground) {
        match aside.detour() {
            Ok(found) => detour = Some(found),
            Err(errno) => return failure(errno),
        }
    }
    if let Some(result) = detour.and_then(|detour| work.take_detour(detour)) {
        return result;
    }
    loop {
        let result = call(work, ground);
        if let Some(result) = work.ended(result, ground, detour) {
            return result;
        }
    }
}

/// Makes the next system call.
fn call(work: &Work, ground: &Ground) -> i64 {
    let counted = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let result = match work.step() {
        Step::Read(at) => work.vector().read(&ground.file, at).map(counted),
        Step::Write(at) => work.vector().write(&ground.file, at).map(counted),
        Step::Sync => fdatasync(&ground.file).map(|()| 0),
        Step::Allocate(flags) => {
            let (offset, len) = work.range();
            fallocate(&ground.file, flags, offset, len).map(|()| 0)
        }
    };
    result.unwrap_or_else(failure)
}

/// Aligned memory for one operation at a time, made when it is first needed.
#[derive(Debug, Default)]
pub(super) struct Aside(Option<(File, Mapping)>);

impl Aside {
    fn detour(&mut self) -> Result<Detour<'_>, Errno> {
        if self.0.is_none() {
            self.0 = Some(aligned_memory(PART_BYTES_MAX)?);
        }
        let (file, mapping) = self.0.as_ref().ok_or(Errno::NOMEM)?;
        let range = mapping.iovec(0, PART_BYTES_MAX).map_err(|_| Errno::NOMEM)?;
        Ok(Detour { file, at: 0, range })
    }
}

/// Memory that is a file too.
pub(super) fn aligned_memory(bytes: u64) -> Result<(File, Mapping), Errno> {
    let file = memfd_create(c"sluice-aside", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, bytes)?;
    let mapping = file.try_clone().ok().and_then(|file| Mapping::new(file, 0, bytes).ok());
    Ok((File::from(file), mapping.ok_or(Errno::NOMEM)?))
}
