//! `sluice qemu-args`: the options that connect QEMU to sockets.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args as ClapArgs;
use sluice_core::limits::QUEUES_PER_DEVICE_MAX;

use super::shell::quote;
use crate::image::Fault;
use crate::output;
use crate::size::parse_size;
use crate::socket::PATH_BYTES_MAX;

/// Print the QEMU options for one disk, or for several of one virtual machine.
///
/// The lines are words for a shell, to be pasted behind `qemu-system-x86_64`.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_long_help = "\
Examples:
  sluice qemu-args --socket-path /run/user/1000/root.sock
  sluice qemu-args --socket-path root.sock --socket-path data.sock --memory 4G --queues 4

Exit codes:
  0  done
  1  failed
  2  wrong usage

Files:
  None; the sockets need not be there.

Environment:
  SLUICE_LOG  as --log")]
pub struct Args {
    /// The socket that sluice listens on; may be given several times
    #[arg(long, value_name = "PATH", required = true)]
    socket_path: Vec<PathBuf>,
    /// Guest memory, such as 512M or 4G
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_memory)]
    memory: u64,
    /// Queues of each disk; the guest makes best use of as many as it has CPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(QUEUES_PER_DEVICE_MAX)))]
    queues: u16,
    /// Let the guest use packed rings
    #[arg(long)]
    packed: bool,
}

/// Prints them.
///
/// # Errors
/// When a path cannot be a socket's, or it cannot be printed.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let lines = lines(&args.socket_path, args.memory, args.queues, args.packed)?;
    output::print([lines.join(&b" \\\n"[..]), b"\n".to_vec()].concat())
}

/// The options, one line each without its end.
///
/// # Errors
/// When a path cannot be a socket's.
//= spec/tools.md#TOOL-7
pub fn lines(
    sockets: &[PathBuf],
    memory: u64,
    queues: u16,
    packed: bool,
) -> anyhow::Result<Vec<Vec<u8>>> {
    // QEMU counts in other units for one of the two unless there is a letter.
    let memory = match memory {
        m if m.is_multiple_of(1 << 30) => format!("{}G", m >> 30),
        m => format!("{}M", m >> 20),
    };
    let packed = if packed { ",packed=on" } else { "" };
    let mut lines = vec![
        format!("-object memory-backend-memfd,id=sluice-mem,size={memory},share=on").into_bytes(),
        format!("-m {memory} -machine q35,memory-backend=sluice-mem").into_bytes(),
    ];
    let mut named = BTreeSet::new();
    for (n, socket) in sockets.iter().enumerate() {
        let path = absolute(socket)?;
        let again = || format!("{} is named twice, and serves one guest", socket.display());
        ensure!(named.insert(path.clone()), Fault::Usage(again()));
        let mut chardev = format!("socket,id=sluice{n},path=").into_bytes();
        chardev.extend([&path, b",reconnect=1".as_slice()].concat());
        lines.push([b"-chardev ".as_slice(), &quote(&chardev)].concat());
        lines.push(
            format!("-device vhost-user-blk-pci,chardev=sluice{n},num-queues={queues}{packed}")
                .into_bytes(),
        );
    }
    Ok(lines)
}

/// A socket's path for an option of QEMU, wherever that is started.
fn absolute(socket: &Path) -> anyhow::Result<Vec<u8>> {
    let path = std::path::absolute(socket).context("--socket-path")?;
    let bytes = path.as_os_str().as_bytes();
    ensure!(
        bytes.len() <= PATH_BYTES_MAX,
        Fault::Usage(format!(
            "the socket path {} has {} bytes; at most {PATH_BYTES_MAX} are possible",
            path.display(),
            bytes.len()
        ))
    );
    // A comma inside a value is doubled.
    Ok(bytes.iter().flat_map(|&b| core::iter::repeat_n(b, if b == b',' { 2 } else { 1 })).collect())
}

fn parse_memory(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if bytes == 0 || !bytes.is_multiple_of(1 << 20) {
        return Err(format!("`{text}` is no whole number of MiB, such as 512M or 4G"));
    }
    Ok(bytes)
}
