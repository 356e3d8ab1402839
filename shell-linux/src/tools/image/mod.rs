//! `sluice image`: making, copying and looking at images of the embedded store.

mod bar;
mod show;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use self::bar::Bar;
use self::show::Show;
use crate::image::{Catalog, Fault, Format, ImportOptions, Name, goes_with_signals, images_dir};
use crate::output;
use crate::size::parse_size;

/// What all these commands have in common.
const HELP: &str = "\
Examples:
  sluice image create root 20G
  sluice image import debian.qcow2 root
  sluice image list

Exit codes:
  0  done
  1  failed
  2  wrong usage, or something that wants to be confirmed
  4  not found
  5  in use, or there already

Files:
  DIR/NAME.raw           an image
  DIR/NAME.raw.poisoned  says that a sync of it failed
  DIR is $XDG_STATE_HOME/sluice/images or ~/.local/state/sluice/images.

Environment:
  XDG_STATE_HOME, HOME  where DIR is
  SLUICE_LOG            as --log";

/// Make, copy and look at images of the embedded store.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_long_help = HELP)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    /// Directory of the images [default: sluice/images in the user's state directory]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Make an image that reads as zeroes
    #[command(after_long_help = HELP)]
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
    #[command(after_long_help = HELP)]
    #[command(visible_alias = "ls")]
    List,
    /// Say all about one image
    #[command(after_long_help = HELP)]
    Info { name: Name },
    /// Remove an image for good
    #[command(after_long_help = HELP)]
    #[command(visible_alias = "rm")]
    Remove { name: Name },
    /// Change the size of an image
    #[command(after_long_help = HELP)]
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
    #[command(after_long_help = HELP)]
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
    #[command(after_long_help = HELP)]
    Import {
        file: PathBuf,
        name: Name,
        /// What is in the file; found out by its bytes otherwise
        #[arg(long, value_name = "FORMAT")]
        format: Option<Format>,
        /// Let the image stand on this file too: its backing file, data file or extent
        #[arg(long, value_name = "FILE")]
        allow: Vec<PathBuf>,
        /// Add zeroes where the file has no multiple of 512 bytes
        #[arg(long)]
        pad: bool,
    },
    /// Make a file of an image
    #[command(after_long_help = HELP)]
    Export {
        name: Name,
        file: PathBuf,
        /// What to make
        #[arg(long, value_name = "FORMAT", default_value = "raw")]
        format: Format,
        /// Replace the file, or overwrite the block device
        #[arg(long)]
        force: bool,
    },
    /// Trust an image again after a failed sync
    #[command(after_long_help = HELP)]
    Repair {
        name: Name,
        /// What is on it has been checked
        #[arg(long)]
        yes: bool,
    },
}

/// Does it.
///
/// # Errors
/// When it cannot; a [`Fault`] says what a caller can do about it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    goes_with_signals()?;
    Ok(act(args)?)
}

fn act(args: &Args) -> Result<(), Fault> {
    let catalog = Catalog::new(args.dir.clone().map_or_else(images_dir, Ok)?);
    let show = Show::new(args.json);
    let note = |text: String| output::complain(text);
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
        Command::Import { file, name, format, allow, pad } => {
            let bar = Bar::new("importing");
            let set = |done, all| bar.set(done, all);
            let options = ImportOptions { format: *format, allow: allow.clone(), pad: *pad };
            let about = catalog.import(file, name, &options, &set, &note);
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
