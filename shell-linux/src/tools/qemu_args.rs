//! `sluice qemu-args`: the options that connect QEMU to a socket.

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

/// Print the QEMU options for a socket.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// The socket that sluice listens on
    #[arg(long, value_name = "PATH")]
    socket_path: PathBuf,
    /// Guest memory, as QEMU takes it
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    memory: String,
    /// Queues; the guest makes best use of as many as it has CPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    queues: u16,
    /// Let the guest use packed rings
    #[arg(long)]
    packed: bool,
}

/// Prints them.
pub fn run(args: &Args) {
    for line in lines(&args.socket_path, &args.memory, args.queues, args.packed) {
        println!("{line}");
    }
}

/// The options, one line each, ready to be pasted behind `qemu-system-x86_64`.
#[must_use]
pub fn lines(socket: &Path, memory: &str, queues: u16, packed: bool) -> Vec<String> {
    let packed = if packed { ",packed=on" } else { "" };
    // A comma inside a value is doubled.
    let path = socket.display().to_string().replace(',', ",,");
    vec![
        format!("-object memory-backend-memfd,id=sluice-mem,size={memory},share=on \\"),
        format!("-m {memory} -machine q35,memory-backend=sluice-mem \\"),
        format!("-chardev socket,id=sluice0,path={path},reconnect=1 \\"),
        format!("-device vhost-user-blk-pci,chardev=sluice0,num-queues={queues}{packed}"),
    ]
}
