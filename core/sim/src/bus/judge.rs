//! Whether what came back says what happened: status, used length, and what was delivered.

use sluice_core::blk::Status;

use super::decode::{Disk, Expect, Kind, Live, gather};
use super::ram::{POISON, Ram};

/// Whether status and used length say what happened.
pub(super) fn judge(
    ram: &Ram,
    disk: &Disk,
    poisoned: bool,
    live: &Live,
    len: u32,
) -> Result<(), (&'static str, String)> {
    let wrong = |what: String| Err(("I04", what));
    let status = live.status.map(|place| ram.bytes(place)[0]);
    let done = match (live.expect, status) {
        (Expect::Silence, _) | (_, None) => {
            return if len == 0 { Ok(()) } else { wrong(format!("used length {len} of nothing")) };
        }
        (Expect::Refusal(expected), Some(status)) => {
            let spoilt = poisoned && status == Status::IoErr as u8;
            if !(status == expected as u8 || spoilt) || len != 1 {
                return wrong(format!("{status} {len} where {expected:?} was due"));
            }
            return Ok(());
        }
        (Expect::Done(kind), Some(0)) => kind,
        (Expect::Done(kind), Some(status)) => {
            //= spec/blk.md#BLK-16
            let spoilt = poisoned && !matches!(kind, Kind::Read | Kind::GetId);
            if status != Status::IoErr as u8 || len != 1 || !(live.failed || spoilt) {
                return wrong(format!("{kind:?} answered {status} {len}"));
            }
            return Ok(());
        }
    };
    if live.failed || live.ops > 0 {
        return wrong(format!("{done:?} is done, {} ops left, {}", live.ops, live.failed));
    }
    if !live.uncovered.is_empty() {
        return Err(("I11", format!("{done:?} is done without {:?}", live.uncovered)));
    }
    let serial_bytes = live.data_bytes.min(20);
    let delivered = match done {
        Kind::Read => live.data_bytes,
        Kind::GetId => serial_bytes,
        Kind::Write | Kind::Flush | Kind::Discard | Kind::WriteZeroes => 0,
    };
    if u64::from(len) != delivered + 1 {
        return wrong(format!("used length {len} of {done:?} with {delivered}"));
    }
    if done == Kind::GetId {
        let after = gather(ram, &live.data);
        let (id, rest) = after.split_at(usize::try_from(serial_bytes).unwrap_or(0));
        if id != &disk.serial[..id.len()] || rest != &live.before[id.len()..] {
            return Err(("I18", format!("serial {id:?}, poison is {POISON}")));
        }
    }
    Ok(())
}
