//! What a converter may touch: its own program, the files it is handed, and nothing else.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Once;

use anyhow::Context;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, path_beneath_rules,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::sys;

/// The newest rules that are asked for; an older kernel keeps those that it knows.
const RULES: ABI = ABI::V5;
/// Where programs and their libraries are, on all kinds of distributions.
const PROGRAMS: [&str; 8] =
    ["/usr", "/bin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store", "/etc/ld.so.cache"];
/// What every program looks at.
const READ: [&str; 3] = ["/dev/urandom", "/sys/devices/system", "/proc/cpuinfo"];

/// Calls that reach other hosts and programs.
const REFUSED: [libc::c_long; 7] = [
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    // It can make sockets too.
    libc::SYS_io_uring_setup,
];

/// Lets what `command` starts read some files, write one, and reach nothing else. It finds them by
/// the numbers of their descriptors, which have to be open when it is started, and ends with the
/// thread that starts it.
///
/// A kernel without Landlock keeps it from the network and other programs alone, which is said
/// once.
///
/// # Errors
/// When it cannot be confined.
//= spec/convert.md#CNV-6
pub(super) fn confine(
    command: &mut Command,
    read: &[&File],
    write: Option<&File>,
) -> anyhow::Result<()> {
    static SAID: Once = Once::new();
    if !kernel_has_landlock() {
        SAID.call_once(|| {
            tracing::warn!(
                "this kernel has no Landlock: the converter is kept from the network alone, not from \
                 other files"
            );
        });
    }
    let rules = rules(command.get_program(), read, write).context("cannot confine it")?;
    let filter = filter().context("cannot confine it")?;
    let handed = read.iter().copied().chain(write).map(AsRawFd::as_raw_fd).collect();
    sys::before_exec(command, rules, filter, handed);
    Ok(())
}

fn kernel_has_landlock() -> bool {
    let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let oldest = AccessFs::from_all(ABI::V1);
    rules.handle_access(oldest).and_then(|rules| rules.create()).is_ok()
}

fn rules(program: &OsStr, read: &[&File], write: Option<&File>) -> anyhow::Result<RulesetCreated> {
    let reading: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::IoctlDev;
    let writing = reading | AccessFs::WriteFile | AccessFs::Truncate;
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(RULES))?
        .handle_access(AccessNet::from_all(RULES))?
        .create()?
        .add_rules(path_beneath_rules(PROGRAMS, AccessFs::from_read(RULES)))?
        .add_rules(path_beneath_rules(
            found(program),
            AccessFs::from_file(RULES) & AccessFs::from_read(RULES),
        ))?
        .add_rules(path_beneath_rules(READ, AccessFs::ReadFile | AccessFs::ReadDir))?
        .add_rules(path_beneath_rules(["/dev/null"], writing))?;
    for file in read {
        rules = rules.add_rule(PathBeneath::new(*file, reading))?;
    }
    if let Some(file) = write {
        rules = rules.add_rule(PathBeneath::new(file, writing))?;
    }
    Ok(rules)
}

/// Where a program is, for one that is not among the others.
fn found(program: &OsStr) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

fn filter() -> anyhow::Result<BpfProgram> {
    let refused: BTreeMap<_, _> = REFUSED.into_iter().map(|call| (call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(refused, SeccompAction::Allow, refuse, arch)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::process::Stdio;

    use super::*;

    fn works(script: &str, read: &[&File], write: Option<&File>) -> bool {
        let mut command = Command::new("bash");
        command.args(["-c", script]).stdout(Stdio::null()).stderr(Stdio::null());
        confine(&mut command, read, write).unwrap();
        command.status().unwrap().success()
    }

    //= spec/convert.md#CNV-6
    #[test]
    fn what_was_not_handed_over_cannot_be_reached() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name| {
            let mut how = File::options();
            how.read(true).write(true).create_new(true);
            let mut file = how.open(dir.path().join(name)).unwrap();
            file.write_all(b"text").unwrap();
            file
        };
        let (source, target, other) = (make("source"), make("target"), make("other"));
        let (from, into) = (source.as_raw_fd(), target.as_raw_fd());
        let at = dir.path().display();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        let open = [
            format!("test $(cat /proc/self/fd/{from}) = text"),
            format!("cat {at}/source && echo more >> /proc/self/fd/{into}"),
        ];
        let shut = [
            format!("cat {at}/other"),
            format!("echo more >> /proc/self/fd/{from}"),
            format!("echo more > {at}/new"),
            format!("rm {at}/other"),
            format!("ls {at}"),
            "cat /etc/passwd".to_owned(),
            format!("cat /proc/self/fd/{}", other.as_raw_fd()),
            format!("exec 3<>/dev/tcp/127.0.0.1/{port}"),
        ];
        for script in open {
            assert!(works(&script, &[&source], Some(&target)), "{script}");
        }
        for script in shut {
            // What it tries works outside.
            let status = Command::new("bash").args(["-c", &script]).stdout(Stdio::null()).status();
            let descriptor = script.contains("/proc/self/fd");
            let gone = script.starts_with("rm").then(|| make("other"));
            assert!(descriptor || status.unwrap().success(), "{script}");
            assert!(!works(&script, &[&source], Some(&target)), "{script}");
            drop(gone);
        }
    }
}
