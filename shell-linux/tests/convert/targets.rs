//! Sources and targets that are no files, and targets without space.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use sluice_linux::image::Format;

use super::kit::{FORMATS, MIB, name, refused, room};
use super::room as namespace;

//= spec/convert.md#CNV-12
#[test]
fn sources_that_are_no_files_are_refused_at_once() {
    let room = &room();
    let (pipe, socket) = (room.path("pipe"), room.path("socket"));
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let _listener = UnixListener::bind(&socket).unwrap();
    let cases = [
        (room.dir.path(), "a directory"),
        (&pipe, "a pipe"),
        (&socket, "a socket"),
        (Path::new("/dev/zero"), "a character device"),
    ];
    for (path, what) in cases {
        let (code, said) = refused(room.import(path, "x"));
        assert!(code == 2 && said.contains(what), "{said}");
        room.has_images(0);
    }
    assert_eq!(refused(room.import(&room.path("nothing"), "x")).0, 4);
}

//= spec/convert.md#CNV-11
#[test]
fn targets_that_are_no_files_are_refused_and_stay() {
    let room = &room();
    room.images.create(&name("i"), MIB, false).unwrap();
    let (pipe, socket) = (room.path("pipe"), room.path("socket"));
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let _listener = UnixListener::bind(&socket).unwrap();
    for format in [Format::Raw, Format::Qcow2] {
        for (path, what) in [
            (room.dir.path(), "a directory"),
            (&pipe, "a pipe"),
            (&socket, "a socket"),
            (Path::new("/dev/full"), "a character device"),
        ] {
            for replace in [false, true] {
                let done =
                    room.images.export(&name("i"), path, format, replace, &|_, _| (), &|_| ());
                let (code, said) = refused(done);
                assert!(code == 2 && said.contains(what), "{said}");
                assert!(path.symlink_metadata().is_ok());
            }
        }
        let nowhere = room.path("no/such/directory/x");
        assert!(refused(room.export("i", &nowhere, format)).1.contains("no/such/directory"));
    }
}

//= spec/convert.md#CNV-11
#[test]
fn a_full_target_fails_and_nothing_is_left() {
    if !namespace::inside("targets::a_full_target_fails_and_nothing_is_left") {
        return;
    }
    let room = &room();
    let disk = room.disk("disk", 8 * MIB);
    room.import(&disk, "i").unwrap();
    let packed = room.converted(&disk, "disk.qcow2", &["-O", "qcow2"]);
    let small = room.path("small");
    fs::create_dir(&small).unwrap();
    namespace::mount_at(&small, "tmpfs", "size=64k");
    for format in FORMATS.into_iter().chain([Format::Raw]) {
        let (code, said) = refused(room.export("i", &small.join("x"), format));
        assert!(code == 1 && said.contains("No space left on device"), "{format}: {said}");
        assert_eq!(fs::read_dir(&small).unwrap().count(), 0, "{format}");
    }
    let images = sluice_linux::image::Catalog::new(small.clone());
    for source in [&disk, &packed] {
        let options = sluice_linux::image::ImportOptions::default();
        let done = images.import(source, &name("i"), &options, &|_, _| (), &|_| ());
        let (code, said) = refused(done);
        assert!(code == 1 && said.contains("No space left on device"), "{said}");
        assert_eq!(fs::read_dir(&small).unwrap().count(), 0);
    }
}

//= spec/convert.md#CNV-11
#[test]
fn a_missing_converter_is_named_and_raw_disks_need_none() {
    let room = &room();
    let disk = room.disk("disk", MIB);
    let packed = room.converted(&disk, "disk.qcow2", &["-O", "qcow2"]);
    let image = |arguments: &[&str]| {
        let mut command = std::process::Command::new(super::kit::SLUICE);
        command.args(["image", "--dir"]).arg(room.images.dir()).args(arguments);
        command.env("PATH", "/nonexistent").output().unwrap()
    };
    let (disk, packed) = (disk.to_str().unwrap(), packed.to_str().unwrap());
    let long = room.path(&"n".repeat(250));
    assert!(image(&["import", disk, "i"]).status.success());
    assert!(image(&["export", "i", long.to_str().unwrap()]).status.success());
    for arguments in [&["import", packed, "x"][..], &["export", "--format", "vdi", "i", "x"]] {
        let output = image(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("qemu-utils"), "{said}");
    }
    room.has_images(1);
}
