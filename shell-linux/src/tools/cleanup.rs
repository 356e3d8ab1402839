//! `sluice cleanup`: removes what a check leaves behind that is ended by a signal.
//!
//! A process of its own, at the other end of a pipe: it sees every end of the check, that by
//! SIGKILL too, and then removes what was the check's. The daemon ends with the check by itself.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::parking::keeper::Keeper;

/// Begins the names of directories that are made for a check, and are removed.
pub(super) const PREFIX: &str = "sluice-verify-";
/// The disk's socket in such a directory.
pub(super) const SOCKET: &str = "disk.sock";

/// How long the last daemon may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Remove a check's directory when the check has ended. Not for people: its standard input is a
/// pipe that closes then.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The directory
    directory: PathBuf,
}

/// The check's side of it: cleans up when dropped, or when the process ends.
#[derive(Debug)]
pub(super) struct Cleanup(Child);

impl Cleanup {
    /// For a directory that has just been made.
    //= spec/tools.md#TOOL-10
    pub(super) fn of(directory: &Path) -> anyhow::Result<Self> {
        let this = std::env::current_exe().context("finding this program")?;
        let mut cleanup = Command::new(this);
        cleanup.args(["--log", "off", "cleanup"]).arg(directory);
        cleanup.stdin(Stdio::piped()).stdout(Stdio::null());
        cleanup.spawn().map(Self).context("starting another process")
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Waits for the end of the check, and removes what it had.
///
/// # Errors
/// When the directory is no check's, or cannot be removed.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let name = args.directory.file_name().context("a directory has a name")?;
    ensure!(name.as_encoded_bytes().starts_with(PREFIX.as_bytes()), "this is no check's directory");
    // What ends the check's group by a signal must not end this one.
    let _ = rustix::process::setsid();
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).context("waiting for the end")?;
    let give_up = Instant::now() + PATIENCE;
    loop {
        // It lets go when its daemon is dead.
        let _ = Keeper::dismiss(&args.directory.join(SOCKET));
        match std::fs::remove_dir_all(&args.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
            Err(error) if Instant::now() > give_up => {
                return Err(error)
                    .with_context(|| format!("removing {}", args.directory.display()));
            }
            Ok(()) | Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    Ok(ExitCode::SUCCESS)
}
