//! Tests that need file systems of their own run again inside a mount namespace.

use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, mount};

use skip::skip;

#[path = "../support/skip.rs"]
pub(crate) mod skip;

const INSIDE: &str = "SLUICE_TEST_ROOM";

/// `true` inside a namespace where mounting is allowed and hurts nobody. Outside, runs the test
/// of this name in there and answers `false`.
pub(crate) fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount"]);
        command
    };
    if !unshare().arg("true").status().is_ok_and(|status| status.success()) {
        skip("this machine gives no user namespace to mount in");
        return false;
    }
    let output = unshare()
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    assert!(said.contains("1 passed"), "no test of this name: {test}\n{said}");
    false
}

/// Mounts a file system of this type.
pub(crate) fn mount_at(dir: &Path, kind: &str, data: &str) {
    let data = std::ffi::CString::new(data).unwrap();
    mount(kind, dir, kind, MountFlags::empty(), data.as_c_str()).unwrap();
}
