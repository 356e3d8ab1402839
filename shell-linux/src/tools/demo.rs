//! `sluice demo`: a disk to try things on, without root, configuration or a virtual machine.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::mpsc::channel;

use anyhow::{Context, ensure};
use clap::Args as ClapArgs;
use signal_hook::consts::SIGTERM;

use super::ending::Hangup;
use super::serve_one::parse_disk;
use super::shell::quote;
use super::{qemu_args, serve_one};
use crate::image::state_dir;
use crate::output;

/// Make a disk, serve it, and say how to use it.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_long_help = "\
Exit codes:
  0  ended by SIGTERM, SIGINT or SIGHUP, or checked
  1  failed, or the check failed
  2  wrong usage
  5  somebody serves the disk already

Files:
  DIR/demo.raw   the disk, kept
  DIR/demo.sock  its socket, removed at the end
  DIR is $XDG_STATE_HOME/sluice/demo or ~/.local/state/sluice/demo.

Environment:
  XDG_STATE_HOME, HOME  where DIR is
  SLUICE_LOG            as --log")]
pub struct Args {
    /// Keep image and socket here [default: sluice/demo in the user's state directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Size of the disk when it is made
    #[arg(long, value_name = "SIZE", value_parser = parse_disk, default_value = "1G")]
    size: u64,
    /// Make another disk, check it for so long with `sluice verify`, remove it and end
    #[arg(long, value_name = "SECONDS")]
    verify: Option<u32>,
}

/// Serves the demonstration disk until SIGTERM, SIGINT or SIGHUP, or checks one and ends.
///
/// # Errors
/// When the image cannot be made, somebody serves it already, or the check fails.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => state_dir()?.join("demo"),
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    if let Some(seconds) = args.verify {
        return verify(&dir, args.size, seconds);
    }
    let image = dir.join("demo.raw");
    let socket = dir.join("demo.sock");
    if !image.exists() {
        make(&image, args.size)?;
    }
    let serve = serve_one::Args::file(socket.clone(), image.clone(), "sluice-demo");
    let introduce = || introduce(&image, &socket).unwrap_or_else(output::complain);
    serve_one::serve(&serve, Hangup::Ends, introduce)
}

fn make(image: &Path, size: u64) -> anyhow::Result<()> {
    let made = File::create_new(image).and_then(|file| file.set_len(size));
    made.with_context(|| format!("making {}", image.display()))
}

/// Serves a disk of its own while another process of this program checks it.
fn verify(dir: &Path, size: u64, seconds: u32) -> anyhow::Result<()> {
    let name = format!("verify-{}", std::process::id());
    let image = dir.join(format!("{name}.raw"));
    let socket = dir.join(format!("{name}.sock"));
    make(&image, size)?;
    let serve = serve_one::Args::file(socket.clone(), image.clone(), "sluice-demo");
    let (ended, end) = channel();
    let served = serve_one::serve(&serve, Hangup::Ends, || {
        let _ = output::print(format!(
            "checking {} through {}\n",
            output::path(&image),
            output::path(&socket)
        ));
        std::thread::spawn(move || {
            let _ = ended.send(check(&socket, seconds));
            // What ends the daemon for everybody ends it here.
            let _ = signal_hook::low_level::raise(SIGTERM);
        });
    });
    let removed = std::fs::remove_file(&image);
    served?;
    removed.with_context(|| format!("removing {}", image.display()))?;
    let status = end.recv().context("the check was interrupted")??;
    ensure!(status.success(), "the check failed: {status}");
    Ok(())
}

fn check(socket: &Path, seconds: u32) -> anyhow::Result<ExitStatus> {
    let this = std::env::current_exe().context("finding this program")?;
    let mut verify = Command::new(this);
    verify.arg("verify").arg("--yes").arg("--socket-path").arg(socket);
    verify.arg("--seconds").arg(seconds.to_string());
    verify.status().context("starting the check")
}

fn introduce(image: &Path, socket: &Path) -> anyhow::Result<()> {
    let word = String::from_utf8_lossy(&quote(socket.as_os_str().as_bytes())).into_owned();
    let mut text = format!(
        "image   {}
socket  {}

Try it from another terminal, no virtual machine needed:
  sluice verify --socket-path {word} --seconds 5 --yes
  sluice bench --socket-path {word} --rw randread --depth 32 --seconds 5

Or give it to a guest:
  qemu-system-x86_64",
        output::path(image),
        output::path(socket)
    )
    .into_bytes();
    for line in qemu_args::lines(&[socket.to_owned()], 1 << 30, 1, false)? {
        text.extend([b" \\\n    ".as_slice(), &line].concat());
    }
    text.extend(b"\n\nCtrl-C ends it; the image stays.\n");
    output::print(text)
}
