//! `sluice demo`: a disk to try things on, without root, configuration or a virtual machine.

use std::fs::File;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args as ClapArgs;

use super::{qemu_args, serve_one};
use crate::size::parse_size;

/// Make a disk, serve it, and say how to use it.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// Keep image and socket here
    #[arg(long, value_name = "DIR", default_value_os_t = default_dir())]
    dir: PathBuf,
    /// Size of the disk when it is made
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "1G")]
    size: u64,
}

/// The user's state directory, as the XDG base directory specification has it.
fn default_dir() -> PathBuf {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::home_dir().map(|home| home.join(".local/state"));
    state
        .filter(|dir| dir.is_absolute())
        .or_else(home)
        .unwrap_or_else(std::env::temp_dir)
        .join("sluice/demo")
}

/// Serves the demonstration disk until SIGTERM or SIGINT.
///
/// # Errors
/// When the image cannot be made, or somebody serves it already.
pub fn run(args: &Args) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.dir).with_context(|| format!("making {}", args.dir.display()))?;
    let image = args.dir.join("demo.raw");
    let socket = args.dir.join("demo.sock");
    if !image.exists() {
        let file = File::create_new(&image)
            .and_then(|file| file.set_len(args.size))
            .with_context(|| format!("making {}", image.display()));
        if let Err(error) = file {
            let _ = std::fs::remove_file(&image);
            return Err(error);
        }
    }
    let serve = serve_one::Args::file(socket.clone(), image.clone(), "sluice-demo");
    serve_one::serve(&serve, || {
        println!("image   {}", image.display());
        println!("socket  {}", socket.display());
        println!();
        println!("Try it from another terminal, no virtual machine needed:");
        println!("  sluice verify --socket-path {} --seconds 5 --yes", socket.display());
        println!(
            "  sluice bench --socket-path {} --rw randread --depth 32 --seconds 5",
            socket.display()
        );
        println!();
        println!("Or give it to a guest:");
        println!("  qemu-system-x86_64 \\");
        for line in qemu_args::lines(&socket, "1G", 1) {
            println!("    {line}");
        }
        println!();
        println!("Ctrl-C ends it; the image stays.");
    })
}
