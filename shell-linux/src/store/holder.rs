//! Who has an image locked, from what the kernel shows in /proc.

use std::fmt;
use std::fs::{File, Metadata, read, read_dir, read_to_string};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{major, minor};
use serde::Serialize;

use super::bytes;

/// A process that holds, or held, the lock of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// Its command line, or empty when it has none any more.
    pub command: String,
    /// Whether it is there and not on its way out.
    pub alive: bool,
}

/// A lock on an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    /// flock(2).
    Whole,
    /// A lock on this byte.
    Byte(u64),
    /// A lock on any byte that says something of an image.
    AnyByte,
}

/// A file as the kernel names it in its tables, and what this process has of it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    name: String,
    ours: (u32, RawFd),
}

impl Place {
    pub(crate) fn of(file: &File) -> std::io::Result<Self> {
        let ours = (std::process::id(), file.as_raw_fd());
        Ok(Self { name: place_of(&file.metadata()?), ours })
    }
}

impl Holder {
    /// Who else holds a lock on this file; `None` when that cannot be seen from here, as from
    /// another pid namespace.
    pub(super) fn find(Place { name, ours }: &Place, lock: Lock) -> Option<Self> {
        let taker = taker(name, lock);
        if taker.as_ref().is_some_and(|taker| taker.alive) {
            return taker;
        }
        // A lock belongs to the open file. Whoever inherited that holds it now.
        heirs(name, lock, Some(*ours)).find(|heir| heir.alive).or(taker)
    }

    /// Who has a file locked; every process is asked only when somebody has.
    //= spec/store.md#STO-23
    pub(crate) fn seen(about: &Metadata) -> Option<Self> {
        let place = place_of(about);
        if let Some(taker) = taker(&place, Lock::Whole) {
            return Some(taker);
        }
        let table = read_to_string("/proc/locks").unwrap_or_default();
        let any = table.lines().any(|line| holder_in(line, &place, Lock::AnyByte).is_some());
        any.then(|| heirs(&place, Lock::AnyByte, None).next()).flatten()
    }

    /// Whether there is a process of its number.
    pub(super) fn is_there(&self) -> bool {
        Path::new(&format!("/proc/{}", self.pid)).exists()
    }

    fn of(pid: u32) -> Self {
        let command = read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
        let stat = read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let status = read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        Self { pid, command, alive: !stat.is_empty() && !is_dying(&stat, &status) }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        if !self.command.is_empty() {
            write!(f, " ({})", self.command)?;
        }
        Ok(())
    }
}

/// A file as the kernel names it in its tables.
fn place_of(about: &Metadata) -> String {
    let (device, number) = (about.dev(), about.ino());
    format!("{:02x}:{:02x}:{number}", major(device), minor(device))
}

fn taker(place: &str, lock: Lock) -> Option<Holder> {
    let locks = read_to_string("/proc/locks").ok()?;
    let mut takers = locks.lines().filter_map(|line| holder_in(line, place, lock));
    // A lock of an open file is nobody's by number.
    takers.find_map(|taker| u32::try_from(taker).ok()).map(Holder::of)
}

/// The process that a line of /proc/locks names as the taker of a lock at `place`, or -1. Lines
/// of those who wait have an arrow in the second column.
fn holder_in(line: &str, place: &str, lock: Lock) -> Option<i32> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let kind = words.next()?;
    let pid = words.nth(2)?.parse().ok()?;
    if words.next()? != place {
        return None;
    }
    let start = words.next()?.parse().ok()?;
    let end = words.next()?.parse().unwrap_or(u64::MAX);
    let meant = match lock {
        Lock::Whole => kind == "FLOCK",
        Lock::Byte(at) => kind != "FLOCK" && (start..=end).contains(&at),
        Lock::AnyByte => kind != "FLOCK" && bytes::names(start),
    };
    meant.then_some(pid)
}

/// Processes with an open file that such a lock at `place` belongs to, except this descriptor.
fn heirs(place: &str, lock: Lock, but: Option<(u32, i32)>) -> impl Iterator<Item = Holder> {
    let numbered = |path: &str| {
        let entries = read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
    };
    let holds = move |pid: u32| {
        numbered(&format!("/proc/{pid}/fdinfo")).any(|fd| {
            if but.is_some_and(|but| but == (pid, i32::try_from(fd).unwrap_or(-1))) {
                return false;
            }
            let info = read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
            let mut locks = info.lines().filter_map(|line| line.strip_prefix("lock:"));
            locks.any(|line| holder_in(line.trim_start(), place, lock).is_some())
        })
    };
    numbered("/proc").filter(move |&pid| holds(pid)).map(Holder::of)
}

/// Whether a process has been killed: it is a zombie, has begun to exit, or has a SIGKILL that
/// it will take as soon as the kernel lets go of it.
fn is_dying(stat: &str, status: &str) -> bool {
    const PF_EXITING: u64 = 4;
    const SIGKILL: u64 = 1 << (9 - 1);
    // The name in parentheses may contain anything.
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
    let state = fields.next().unwrap_or_default();
    let flags = fields.nth(5).and_then(|flags| flags.parse().ok()).unwrap_or(0_u64);
    let pending = |line: &str| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    matches!(state, "Z" | "X" | "x")
        || flags & PF_EXITING != 0
        || status.lines().filter_map(pending).any(|mask| mask & SIGKILL != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_lock_table_are_told_apart() {
        let place = "fd:00:1234";
        let cases = [
            ("1: FLOCK  ADVISORY  WRITE 4711 fd:00:1234 0 EOF", [Some(4711), None, None]),
            ("1: FLOCK  ADVISORY  READ 4711 fd:00:1234 0 EOF", [Some(4711), None, None]),
            ("1: -> FLOCK  ADVISORY  WRITE 4711 fd:00:1234 0 EOF", [None; 3]),
            ("1: POSIX  ADVISORY  WRITE 4711 fd:00:1234 0 EOF", [None, Some(4711), None]),
            ("1: OFDLCK ADVISORY  READ -1 fd:00:1234 100 101", [None, Some(-1), Some(-1)]),
            ("1: OFDLCK ADVISORY  READ -1 fd:00:1234 201 201", [None, None, Some(-1)]),
            ("1: OFDLCK ADVISORY  READ -1 fd:00:1234 1 50", [None; 3]),
            ("1: FLOCK  ADVISORY  WRITE 4711 fd:00:12345 0 EOF", [None; 3]),
            ("1: FLOCK  ADVISORY  WRITE -1 fd:00:1234 0 EOF", [Some(-1), None, None]),
            ("1: FLOCK", [None; 3]),
            ("", [None; 3]),
        ];
        for (line, pids) in cases {
            let locks = [Lock::Whole, Lock::Byte(101), Lock::AnyByte];
            assert_eq!(locks.map(|lock| holder_in(line, place, lock)), pids, "{line}");
        }
    }

    #[test]
    fn a_process_on_its_way_out_is_seen() {
        let quiet = "SigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n";
        let killed = "SigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n";
        assert!(!is_dying("7 (a) b) S 1 7 7 0 -1 4194304 0", quiet));
        assert!(is_dying("7 (ab) Z 1 7 7 0 -1 4194304 0", quiet));
        assert!(is_dying("7 (ab) D 1 7 7 0 -1 4194308 0", quiet));
        assert!(is_dying("7 (ab) D 1 7 7 0 -1 4194304 0", killed));
        assert!(!is_dying("garbage", ""));
    }
}
