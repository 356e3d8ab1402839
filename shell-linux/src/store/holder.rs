//! Who has an image locked, from what the kernel shows in /proc.

use std::fmt;
use std::fs::{File, Metadata, read, read_dir, read_to_string};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{major, minor};
use serde::Serialize;

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

impl Holder {
    /// Who holds an flock(2) on this file; `None` when that cannot be seen from here, as from
    /// another pid namespace.
    pub(crate) fn find(file: &File) -> Option<Self> {
        let place = place_of(&file.metadata().ok()?);
        let taker = taker(&place);
        if taker.as_ref().is_some_and(|taker| taker.alive) {
            return taker;
        }
        // A lock belongs to the open file. Whoever inherited that holds it now.
        heirs(&place).into_iter().map(Self::of).find(|heir| heir.alive).or(taker)
    }

    /// Who took an flock(2) on this file, without asking every process for it.
    pub(crate) fn seen(about: &Metadata) -> Option<Self> {
        taker(&place_of(about))
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

fn taker(place: &str) -> Option<Holder> {
    let locks = read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| holder_in(line, place)).map(Holder::of)
}

/// The process that a line of /proc/locks names as the taker of an flock at `place`. Lines of
/// those who wait have an arrow in the second column.
fn holder_in(line: &str, place: &str) -> Option<u32> {
    let mut words = line.split_ascii_whitespace().skip(1);
    if words.next()? != "FLOCK" {
        return None;
    }
    let pid = words.nth(2)?;
    (words.next()? == place).then(|| pid.parse().ok()).flatten()
}

/// Processes with an open file that the lock at `place` belongs to.
fn heirs(place: &str) -> Vec<u32> {
    let numbered = |path: &str| {
        let entries = read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
    };
    let holds = |pid: u32| {
        numbered(&format!("/proc/{pid}/fdinfo")).any(|fd| {
            let info = read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
            let mut locks = info.lines().filter_map(|line| line.strip_prefix("lock:"));
            locks.any(|lock| holder_in(lock.trim_start(), place).is_some())
        })
    };
    numbered("/proc").filter(|&pid| holds(pid)).collect()
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
            ("1: FLOCK  ADVISORY  WRITE 4711 fd:00:1234 0 EOF", Some(4711)),
            ("1: FLOCK  ADVISORY  READ 4711 fd:00:1234 0 EOF", Some(4711)),
            ("1: -> FLOCK  ADVISORY  WRITE 4711 fd:00:1234 0 EOF", None),
            ("1: POSIX  ADVISORY  WRITE 4711 fd:00:1234 0 EOF", None),
            ("1: FLOCK  ADVISORY  WRITE 4711 fd:00:12345 0 EOF", None),
            ("1: FLOCK  ADVISORY  WRITE -1 fd:00:1234 0 EOF", None),
            ("1: FLOCK", None),
            ("", None),
        ];
        for (line, pid) in cases {
            assert_eq!(holder_in(line, place), pid, "{line}");
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
