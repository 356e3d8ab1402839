//! The `sluice` program.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sluice_linux::parking::keeper;
use sluice_linux::tools::{bench, demo, image, qemu_args, serve_one, verify};
use tracing_subscriber::EnvFilter;

/// The gate between virtual machines and block storage.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    long_about = "The gate between virtual machines and block storage.

sluice serves disks to virtual machines over vhost-user-blk: the guest's memory is shared, its
requests are taken from its rings and its data is moved once. `sluice demo` is a first look."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log level, or a filter such as sluice_linux=debug
    #[arg(long, global = true, value_name = "FILTER", default_value = "info", env = "SLUICE_LOG")]
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
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = match EnvFilter::try_new(&cli.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("sluice: --log {}: {error}", cli.log);
            return ExitCode::from(2);
        }
    };
    let terminal = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(terminal);
    log.with_writer(std::io::stderr).init();
    let done = match &cli.command {
        Command::Demo(args) => demo::run(args).map(|()| ExitCode::SUCCESS),
        Command::ServeOne(args) => serve_one::run(args).map(|()| ExitCode::SUCCESS),
        Command::Bench(args) => bench::run(args),
        Command::Verify(args) => verify::run(args),
        Command::QemuArgs(args) => {
            qemu_args::run(args);
            Ok(ExitCode::SUCCESS)
        }
        Command::Image(args) => Ok(image::run(args)),
        Command::Keeper(args) => keeper::run(args),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sluice: {error:#}");
            ExitCode::FAILURE
        }
    }
}
