//! What is said where the converter cannot be confined as it should be.

use std::process::{Command, Output, Stdio};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

use super::kit::{MIB, SLUICE, room};

/// Makes this thread, and what it starts, see a kernel without Landlock.
fn forget_landlock() {
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let calls = [(libc::SYS_landlock_create_ruleset, Vec::new())].into();
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, missing, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    apply_filter(&program).unwrap();
}

//= spec/convert.md#CNV-6
#[test]
fn a_kernel_without_landlock_is_worth_a_word() {
    let room = &room();
    let source = room.converted(&room.disk("disk", MIB), "d.qcow2", &["-O", "qcow2"]);
    let import = |name: &str| -> Output {
        let mut import = Command::new(SLUICE);
        import.args(["--log", "info", "image", "--dir"]).arg(room.path("images")).arg("import");
        import.arg(&source).arg(name).stdin(Stdio::null()).output().unwrap()
    };
    let warnings = |output: &Output| {
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).matches("no Landlock").count()
    };
    let before = std::thread::scope(|scope| {
        let without = || {
            forget_landlock();
            import("a")
        };
        scope.spawn(without).join().unwrap()
    });
    assert_eq!(warnings(&before), 1, "once: {before:?}");
    assert!(room.bytes("a") == std::fs::read(room.path("disk")).unwrap());
    assert_eq!(warnings(&import("b")), 0, "this one has it, as all tests of the confinement need");
}
