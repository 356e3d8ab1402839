//! What a daemon lets front ends have, as the command line says it.

use clap::Args as ClapArgs;

use crate::control::Options;
use crate::foreign::Quota;
use crate::size::parse_size;

/// What front ends may have.
#[derive(Clone, Copy, Debug, Default, ClapArgs)]
pub struct FrontEnds {
    /// Memory that one disk's front end may have mapped [default: three eighths of the
    /// address space]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory_max: Option<u64>,
    /// Memory that all front ends together may have mapped [default: three quarters of the address
    /// space]; half of it is kept for the disks in equal shares
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory_max_all: Option<u64>,
    /// Accept guest memory in files of any file system. A front end can then stop this program, and
    /// with it every disk, by a file whose file system does not answer (FUSE, network)
    #[arg(long)]
    allow_file_memory: bool,
}

impl FrontEnds {
    /// The same as options of the control thread.
    #[must_use]
    pub fn options(self) -> Options {
        let options = Options { any_file: self.allow_file_memory, ..Options::default() };
        let all = self.memory_max_all.unwrap_or(options.memory.all);
        let each = self.memory_max.unwrap_or(options.memory.each).min(all);
        Options { memory: Quota { each, all }, ..options }
    }
}
