//! The daemon in the storm, seen from outside.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::LIMIT;

/// Lines that one cause may write in ten seconds, and causes that there may be.
const LINES: u64 = 30;
const CAUSES: u64 = 25;

/// What a daemon holds: mappings and descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    mappings: usize,
    descriptors: usize,
}

pub(crate) struct Victim {
    child: Child,
    directory: tempfile::TempDir,
}

impl Victim {
    /// With two disks.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let log = std::fs::File::create(directory.path().join("log")).expect("a log");
        let sluice = std::env::var_os("SLUICE");
        let child = Command::new(sluice.unwrap_or_else(|| env!("CARGO_BIN_EXE_sluice").into()))
            .args(["serve-one", "--blk-memory", "4M", "--queues", "4", "--count", "2"])
            .arg("--socket-path")
            .arg(directory.path().join("disk"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the daemon");
        let this = Self { child, directory };
        let limit = Instant::now() + LIMIT;
        while std::os::unix::net::UnixStream::connect(this.socket(1)).is_err() {
            assert!(Instant::now() < limit, "no socket");
            std::thread::sleep(Duration::from_millis(10));
        }
        this
    }

    pub(crate) fn socket(&self, disk: u32) -> PathBuf {
        self.directory.path().join(format!("disk{disk}"))
    }

    fn proc(&self, what: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{what}", self.child.id()))
    }

    pub(crate) fn lives(&self) {
        let state = std::fs::read_to_string(self.proc("stat")).unwrap_or_default();
        let lives = !state.is_empty() && !state.contains(") Z ");
        assert!(lives, "the daemon has died:\n{}", self.log());
    }

    /// What each of its threads is doing.
    pub(crate) fn threads(&self) -> String {
        let mut text = String::new();
        for task in std::fs::read_dir(self.proc("task")).into_iter().flatten().flatten() {
            let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let _ = write!(text, "{} in {}; ", read("comm").trim(), read("wchan"));
        }
        text
    }

    pub(crate) fn held(&self) -> Held {
        let lines = std::fs::read_to_string(self.proc("maps")).expect("it lives");
        let mappings = lines.lines().count();
        let descriptors = std::fs::read_dir(self.proc("fd")).expect("it lives").count();
        Held { mappings, descriptors }
    }

    /// Waits until it holds what it held before. The heap, and threads that come and go, make a
    /// few mappings of difference.
    pub(crate) fn settles(&self, before: Held) {
        let limit = Instant::now() + LIMIT;
        loop {
            self.lives();
            let held = self.held();
            let same = held.descriptors <= before.descriptors + 2;
            if same && held.mappings <= before.mappings + 24 {
                return;
            }
            assert!(Instant::now() < limit, "{held:?}, not {before:?}: {}", self.threads());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Its log is as long as the time allows, not as what was said to it.
    pub(crate) fn is_quiet(&self, time: Duration) {
        let lines = u64::try_from(self.log().lines().count()).expect("few");
        let allowed = (time.as_secs() / 10 + 2) * LINES * CAUSES;
        assert!(lines <= allowed, "{lines} lines, {allowed} allowed:\n{}", self.log());
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let ended = self.child.try_wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the daemon, before it was killed here: {ended:?}");
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        }
    }
}
