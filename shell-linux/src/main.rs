//! The `sluice` program.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sluice_linux::image::Fault;
use sluice_linux::parking::keeper;
use sluice_linux::tools::{bench, cleanup, demo, image, qemu_args, serve_one, verify};
use sluice_linux::{log, output};

/// The gate between virtual machines and block storage.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    long_about = "The gate between virtual machines and block storage.

sluice serves disks to virtual machines over vhost-user-blk: the guest's memory is shared, its
requests are taken from its rings and its data is moved once. `sluice demo` is a first look.",
    after_long_help = "\
Exit codes:
  0  done
  1  failed; for verify and bench: the disk is wrong
  2  wrong usage, or something that wants to be confirmed
  3  verify, bench: no verdict, it could not be carried out
  4  nobody or nothing is there
  5  in use, or there already

Files:
  Images are in $XDG_STATE_HOME/sluice/images or ~/.local/state/sluice/images.

Environment:
  XDG_STATE_HOME, HOME  where images are
  SLUICE_LOG            as --log"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What is logged to standard error: off, error, warn, info, debug or trace, or a filter such as
    /// warn,sluice_linux=debug. Errors that end a command are always said
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info", env = "SLUICE_LOG", value_parser = log::parse_filter)]
    log: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    ServeOne(serve_one::Args),
    Bench(bench::Args),
    Verify(verify::Args),
    QemuArgs(qemu_args::Args),
    Image(image::Args),
    #[command(hide = true)]
    Keeper(keeper::Args),
    #[command(hide = true)]
    Cleanup(cleanup::Args),
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    if serve_one::asks_for_capabilities(&arguments) {
        return ended(serve_one::print_capabilities().map(|()| ExitCode::SUCCESS), FAILED);
    }
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return misused(&error, &arguments),
    };
    log::start(cli.log.parse().expect("the filter has been parsed before"));
    let (done, failed) = match &cli.command {
        Command::Demo(args) => (demo::run(args).map(|()| ExitCode::SUCCESS), FAILED),
        Command::ServeOne(args) => (serve_one::run(args).map(|()| ExitCode::SUCCESS), FAILED),
        Command::Bench(args) => (bench::run(args), NO_VERDICT),
        Command::Verify(args) => (verify::run(args), NO_VERDICT),
        Command::QemuArgs(args) => (qemu_args::run(args).map(|()| ExitCode::SUCCESS), FAILED),
        Command::Image(args) => (image::run(args).map(|()| ExitCode::SUCCESS), FAILED),
        Command::Keeper(args) => (keeper::run(args), FAILED),
        Command::Cleanup(args) => (cleanup::run(args), FAILED),
    };
    ended(done, failed)
}

/// The exit code of an error that has none of its own.
const FAILED: u8 = 1;
/// The same where [`FAILED`] says that a disk is wrong.
const NO_VERDICT: u8 = 3;

/// Says why a command failed, if it did, and what its exit code is.
//= spec/tools.md#TOOL-4
//= spec/tools.md#TOOL-5
fn ended(done: anyhow::Result<ExitCode>, failed: u8) -> ExitCode {
    done.unwrap_or_else(|error| {
        output::complain(&error);
        ExitCode::from(error.downcast_ref().map_or(failed, Fault::exit_code))
    })
}

/// Help that was asked for, or what is wrong with the command line.
//= spec/tools.md#TOOL-2
fn misused(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    if error.use_stderr() {
        let text = error.render().to_string();
        let shown = arguments.iter().fold(text.clone(), |text, word| visible(&text, word));
        // If standard error is closed there is nobody to tell.
        let _ =
            if shown == text { error.print() } else { io::stderr().write_all(shown.as_bytes()) };
        return ExitCode::from(2);
    }
    ended(output::print(error.render().to_string()).map(|()| ExitCode::SUCCESS), FAILED)
}

/// A text in which a word of the command line, or a part of it that is a value, writes no lines.
//= spec/host.md#HOST-1
fn visible(text: &str, word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let parts = word.split(['=', ',']).filter(|part| part.contains(char::is_control));
    parts.fold(text.to_owned(), |text, part| text.replace(part, &log::escape(part)))
}
