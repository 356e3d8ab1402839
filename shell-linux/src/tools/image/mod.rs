//! `sluice image`: making, copying and looking at images of the embedded store.

mod bar;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args as ClapArgs, Subcommand};

use self::bar::Bar;
use self::show::Show;
use crate::image::{Catalog, Fault, Format, Name, images_dir};
use crate::size::parse_size;

/// Make, copy and look at images of the embedded store.
#[derive(Clone, Debug, ClapArgs)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 4 not found, 5 in use or there already."
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    /// Directory of the images
    #[arg(long, global = true, value_name = "DIR", default_value_os_t = images_dir())]
    dir: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Make an image that reads as zeroes
    Create {
        name: Name,
        /// Its size, such as 10G
        #[arg(value_parser = parse_size)]
        size: u64,
        /// Take its space now, so that it cannot run out later
        #[arg(long)]
        reserve: bool,
    },
    /// List all images
    #[command(visible_alias = "ls")]
    List,
    /// Say all about one image
    Info { name: Name },
    /// Remove an image for good
    #[command(visible_alias = "rm")]
    Remove { name: Name },
    /// Change the size of an image
    Resize {
        name: Name,
        /// Its new size, such as 20G
        #[arg(value_parser = parse_size)]
        size: u64,
        /// Cut off what is behind a smaller size, for good
        #[arg(long)]
        shrink: bool,
    },
    /// Make an image that shares the blocks of another
    Clone {
        /// The image there is
        src: Name,
        /// The image to make
        dst: Name,
        /// Copy the blocks instead
        #[arg(long)]
        copy: bool,
    },
    /// Make an image of a file or block device
    Import {
        file: PathBuf,
        name: Name,
        /// What is in the file; found out by its first bytes otherwise
        #[arg(long, value_name = "FORMAT")]
        format: Option<Format>,
    },
    /// Make a file of an image
    Export {
        name: Name,
        file: PathBuf,
        /// What to make
        #[arg(long, value_name = "FORMAT", default_value = "raw")]
        format: Format,
        /// Replace the file
        #[arg(long)]
        force: bool,
    },
    /// Trust an image again after a failed sync
    Repair {
        name: Name,
        /// What is on it has been checked
        #[arg(long)]
        yes: bool,
    },
}

/// Does it, and says why if it cannot.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    match act(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("sluice: {fault}");
            ExitCode::from(fault.exit_code())
        }
    }
}

fn act(args: &Args) -> Result<(), Fault> {
    let catalog = Catalog::new(args.dir.clone());
    let show = Show::new(args.json);
    let note = |text: String| eprintln!("sluice: {text}");
    match &args.command {
        Command::Create { name, size, reserve } => {
            show.one("made", &catalog.create(name, *size, *reserve)?)
        }
        Command::List => show.all(&catalog.list()?, catalog.dir()),
        Command::Info { name } => show.info(&catalog.about(name)?),
        Command::Remove { name } => {
            catalog.remove(name)?;
            show.removed(name)
        }
        Command::Resize { name, size, shrink } => {
            show.one("resized", &catalog.resize(name, *size, *shrink)?)
        }
        Command::Clone { src, dst, copy } => {
            let bar = Bar::new("copying");
            let about = catalog.clone_image(src, dst, *copy, &|done, all| bar.set(done, all));
            bar.end();
            show.one("made", &about?)
        }
        Command::Import { file, name, format } => {
            let bar = Bar::new("importing");
            let set = |done, all| bar.set(done, all);
            let about = catalog.import(file, name, *format, &set, &note);
            bar.end();
            show.one("made", &about?)
        }
        Command::Export { name, file, format, force } => {
            let bar = Bar::new("exporting");
            let set = |done, all| bar.set(done, all);
            let bytes = catalog.export(name, file, *format, *force, &set, &note);
            bar.end();
            show.exported(name, file, bytes?)
        }
        Command::Repair { name, yes } => repair(&catalog, name, *yes, show),
    }
}

fn repair(catalog: &Catalog, name: &Name, yes: bool, show: Show) -> Result<(), Fault> {
    if catalog.about(name)?.poisoned && !yes {
        return Err(Fault::Usage(format!(
            "a sync of image {name} failed, so writes that were acknowledged may be missing from \
             it. Check what is on it (it can be exported, and attached for reading), restore what \
             is missing, then give --yes"
        )));
    }
    show.repaired(name, catalog.repair(name)?)
}
