//! System calls in the thread that asks for them.

use rustix::fs::{fallocate, fdatasync};
use rustix::io::Errno;

use super::aside::Asides;
use super::ground::Ground;
use super::work::{Step, Work, failure};

/// Carries work out to its end.
#[inline]
pub(super) fn carry_out(work: &mut Work, ground: &Ground, asides: &mut Asides) -> i64 {
    if work.wants_detour(ground) {
        return carry_out_aside(work, ground, asides);
    }
    loop {
        let result = call(work, ground);
        if let Some(result) = work.ended(result, ground, None) {
            return result;
        }
    }
}

#[cold]
fn carry_out_aside(work: &mut Work, ground: &Ground, asides: &mut Asides) -> i64 {
    let Some(place) = asides.take() else { return failure(Errno::NOMEM) };
    let result = match asides.detour(place) {
        Ok(detour) => work.take_detour(detour).unwrap_or_else(|| {
            loop {
                let result = call(work, ground);
                if let Some(result) = work.ended(result, ground, Some(detour)) {
                    return result;
                }
            }
        }),
        Err(errno) => failure(errno),
    };
    asides.give_back(place);
    result
}

/// Makes the next system call.
#[inline]
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
