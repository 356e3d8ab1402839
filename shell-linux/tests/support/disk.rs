//! A daemon and the tools of the same build, run as a person would run them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");

/// A daemon with one disk, killed at the end.
pub(crate) struct Disk {
    pub(crate) daemon: Child,
    directory: TempDir,
}

impl Disk {
    pub(crate) fn serve(source: &[&str]) -> Self {
        Self::serve_at("disk.sock", source)
    }

    /// The same, waiting for a socket of another name.
    pub(crate) fn serve_at(first: &str, source: &[&str]) -> Self {
        Self::serve_telling(first, source, Stdio::inherit())
    }

    /// The same, with a place for the log.
    pub(crate) fn serve_telling(first: &str, source: &[&str], log: impl Into<Stdio>) -> Self {
        let directory = TempDir::new().unwrap();
        let daemon = Command::new(SLUICE)
            .args(["--log", "warn", "serve-one", "--queues", "4", "--socket-path"])
            .arg(directory.path().join("disk.sock"))
            .args(source)
            .stderr(log)
            .spawn()
            .unwrap();
        let disk = Self { daemon, directory };
        let give_up = Instant::now() + Duration::from_secs(20);
        while !disk.directory.path().join(first).exists() {
            assert!(Instant::now() < give_up, "no socket");
            std::thread::sleep(Duration::from_millis(10));
        }
        disk
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("disk.sock")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

pub(crate) fn run(socket: &Path, tool: &str, args: &[&str]) -> (Output, Value) {
    let output = Command::new(SLUICE)
        .args([tool, "--json", "--socket-path"])
        .arg(socket)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output, report)
}
