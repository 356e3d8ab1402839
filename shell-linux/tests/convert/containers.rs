//! Files that hold a disk in a way that is not read here.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sluice_linux::image::{Content, Format, ImportOptions, look_before_serving};

use super::kit::{FORMATS, MIB, Room, SLUICE, qemu_img, refused, room, run};

fn raw() -> ImportOptions {
    ImportOptions { format: Some(Format::Raw), ..ImportOptions::default() }
}

fn content(bytes: &[u8]) -> Content {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    Content::of(&file, bytes.len() as u64).unwrap()
}

/// Files made by the programs themselves, with what has to be run first.
fn containers(room: &Room) -> Vec<(&'static str, Vec<u8>)> {
    let disk = room.disk("disk", MIB);
    let path = disk.to_str().unwrap();
    let of = |program: &str, arguments: &[&str]| run(program, arguments).stdout;
    let mut all = vec![
        ("gunzip", of("gzip", &["--stdout", path])),
        ("unxz", of("xz", &["--stdout", path])),
        ("unlzma", of("xz", &["--stdout", "--format=lzma", path])),
        ("bunzip2", of("bzip2", &["--stdout", path])),
        ("tar", of("tar", &["--create", "--to-stdout", "--format=ustar", path])),
        ("tar", of("tar", &["--create", "--to-stdout", "--format=v7", path])),
        ("tar", of("tar", &["--create", "--to-stdout", "--format=gnu", path])),
    ];
    for (first, options) in [
        ("-f qed", &["-O", "qed"][..]),
        ("-f parallels", &["-O", "parallels"]),
        ("-f qcow ", &["-O", "qcow"]),
        ("import --format vpc", &["-O", "vpc", "-o", "subformat=fixed"]),
    ] {
        all.push((first, fs::read(room.converted(&disk, "made", options)).unwrap()));
    }
    let by_magic: [(&str, &[u8]); 12] = [
        ("unzstd", b"\x28\xb5\x2f\xfd"),
        ("unlz4", b"\x04\x22\x4d\x18"),
        ("lzip", b"LZIP\x01"),
        ("lzop", b"\x89LZO\0\r\n\x1a\n"),
        ("unzip", b"PK\x03\x04\x14\0"),
        ("unzip", b"PK\x05\x06\0\0"),
        ("7z", b"7z\xbc\xaf\x27\x1c\0\x04"),
        ("unrar", b"Rar!\x1a\x07\x01\0"),
        ("-f bochs", b"Bochs Virtual HD Image\0"),
        ("-f cloop", b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"),
        ("simg2img", b"\x3a\xff\x26\xed\x01\0"),
        ("vmkfstools", b"COWD\x01\0\0\0"),
    ];
    all.extend(by_magic.map(|(first, magic)| {
        let mut bytes = magic.to_vec();
        bytes.resize(4096, 0x55);
        (first, bytes)
    }));
    let mut dmg = vec![0x55; 4096];
    dmg[3584..3588].copy_from_slice(b"koly");
    all.push(("-f dmg", dmg));
    all
}

//= spec/convert.md#CNV-2
#[test]
fn containers_are_refused_with_the_command_to_run_first() {
    let room = &room();
    for (first, mut bytes) in containers(room) {
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        if first.contains("vpc") {
            // Its end tells; it is whole blocks long anyway.
            assert!(bytes[bytes.len() - 512..].starts_with(b"conectix"));
        }
        let file = room.path("download");
        fs::write(&file, &bytes).unwrap();
        let (code, said) = refused(room.import(&file, "x"));
        assert!(code == 2 && said.contains(first) && said.contains("--format raw"), "{said}");
        room.has_images(0);
        let said = look_before_serving(&file, false, false).unwrap_err().to_string();
        assert!(said.contains(first) && said.contains("--format raw"), "{said}");
        // Whoever says that it is raw gets it byte for byte.
        room.import_with(&file, "raw", &raw()).unwrap();
        assert!(room.bytes("raw") == bytes);
        fs::remove_file(room.images.path(&super::kit::name("raw"))).unwrap();
        look_before_serving(&file, true, true).unwrap();
        fs::remove_file(&file).unwrap();
    }
}

//= spec/convert.md#CNV-2
#[test]
fn formats_are_told_by_their_own_bytes() {
    let mut vdi = [0; 68];
    vdi[64..].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
    let cases: [(&[u8], Format); 7] = [
        (b"QFI\xfb\0\0\0\x03", Format::Qcow2),
        (b"KDMV", Format::Vmdk),
        (b"# Disk DescriptorFile", Format::Vmdk),
        (b"vhdxfile", Format::Vhdx),
        (b"conectix", Format::Vpc),
        (&vdi, Format::Vdi),
        (b"\xeb\x63\x90", Format::Raw),
    ];
    for (head, format) in cases {
        let mut bytes = head.to_vec();
        assert_eq!(content(&bytes), Content::Disk(format), "a short file");
        bytes.resize(2048, 0);
        assert_eq!(content(&bytes), Content::Disk(format));
    }
    assert_eq!(content(b""), Content::Disk(Format::Raw));
}

/// What guests put onto whole disks is what a raw disk is for.
//= spec/convert.md#CNV-2
#[test]
fn contents_of_disks_are_raw() {
    let mut iso = vec![0; 40 << 10];
    iso[32769..32774].copy_from_slice(b"CD001");
    let mut master_boot_record = vec![0x5d; 512];
    master_boot_record[510..].copy_from_slice(&[0x55, 0xaa]);
    let heads: [&[u8]; 9] = [
        &iso,
        &master_boot_record,
        b"LUKS\xba\xbe\0\x02",
        b"hsqs",
        b"XFSB",
        b"\x7fELF",
        b"LVM2",
        b"\0\0\0\0",
        &[0xff; 512],
    ];
    for head in heads {
        let mut bytes = head.to_vec();
        bytes.resize(bytes.len().max(4096), 0);
        assert_eq!(content(&bytes), Content::Disk(Format::Raw), "{:?}", &head[..4]);
    }
}

fn serve(file: &Path, socket: &Path, more: &[&str]) -> Child {
    let mut command = Command::new(SLUICE);
    command.args(["serve-one", "--park", "never", "--socket-path"]).arg(socket);
    command.arg("--blk-file").arg(file).args(more).stderr(Stdio::piped()).spawn().unwrap()
}

/// The exit code of a daemon that refuses, and why.
fn refusal(file: &Path, socket: &Path) -> (Option<i32>, String) {
    let output = serve(file, socket, &[]).wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Serves until it is there, then kills.
fn served(file: &Path, socket: &Path, more: &[&str]) {
    let mut daemon = serve(file, socket, more);
    let give_up = Instant::now() + Duration::from_secs(60);
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        assert!(daemon.try_wait().unwrap().is_none(), "{file:?} is not served");
        assert!(Instant::now() < give_up, "no socket");
        std::thread::sleep(Duration::from_millis(10));
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

//= spec/convert.md#CNV-3
#[test]
fn other_formats_are_not_served() {
    let room = &room();
    let socket = room.path("sock");
    for format in FORMATS.map(|format| format.to_string()) {
        let file = room.path(&format!("x.{format}"));
        qemu_img(&["create", "-q", "-f", &format, file.to_str().unwrap(), "8M"]);
        let (code, said) = refusal(&file, &socket);
        let first = format!("sluice image import --format {format}");
        assert!(code == Some(1) && said.contains(&first), "{code:?} {said}");
    }
    let file = room.path("x.qcow2");
    fs::File::options().write(true).open(&file).unwrap().set_len(MIB).unwrap();
    let link = room.path("link.raw");
    symlink(&file, &link).unwrap();
    assert_eq!(refusal(&link, &socket).0, Some(1));
    served(&file, &socket, &["--format", "raw"]);
}

/// A guest writes what it likes into its first and last sectors, and the daemon is killed.
//= spec/convert.md#CNV-3
#[test]
fn no_guest_makes_its_own_disk_unservable() {
    let room = &room();
    let socket = room.path("sock");
    let file = room.disk("disk.img", MIB);
    served(&file, &socket, &[]);
    let name = super::kit::name("made");
    room.images.create(&name, MIB, false).unwrap();
    for (first, mut bytes) in containers(room) {
        bytes.truncate(512);
        for path in [&file, &room.images.path(&name)] {
            let disk = fs::File::options().write(true).open(path).unwrap();
            disk.write_all_at(&bytes, 0).unwrap();
            disk.write_all_at(b"conectix", MIB - 512).unwrap();
            look_before_serving(path, false, false).unwrap_or_else(|_| panic!("{first}"));
        }
    }
    served(&file, &socket, &[]);
    // What was served because somebody was sure needs nobody to be sure again.
    let copy = room.path("copy.img");
    fs::write(&copy, fs::read(&file).unwrap()).unwrap();
    assert_eq!(refusal(&copy, &socket).0, Some(1));
    served(&copy, &socket, &["--format", "raw"]);
    served(&copy, &socket, &[]);
    // Read only, nothing is written down about it: not even that.
    let other = room.path("other.img");
    fs::write(&other, vec![0; 1 << 20]).unwrap();
    served(&other, &socket, &["--read-only"]);
    fs::write(&other, fs::read(&file).unwrap()).unwrap();
    assert_eq!(refusal(&other, &socket).0, Some(1));
}

/// A file system without attributes: there names have to do.
//= spec/convert.md#CNV-4
#[test]
fn without_marks_a_name_says_what_is_raw() {
    if !super::room::inside("containers::without_marks_a_name_says_what_is_raw") {
        return;
    }
    let room = &room();
    let bare = room.path("bare");
    fs::create_dir(&bare).unwrap();
    super::room::mount_at(&bare, "ramfs", "");
    let mut disk = vec![0; 1 << 20];
    disk[..4].copy_from_slice(b"\x1f\x8b\x08\0");
    let (named, other) = (bare.join("x.raw"), bare.join("x.img"));
    for path in [&named, &other] {
        fs::write(path, &disk).unwrap();
    }
    look_before_serving(&named, false, false).unwrap();
    assert!(look_before_serving(&other, false, false).is_err());
    look_before_serving(&other, true, false).unwrap();
    // Images are there under such names, and are made without marks.
    let images = sluice_linux::image::Catalog::new(bare.clone());
    let name = super::kit::name("i");
    images.import(&other, &name, &raw(), &|_, _| (), &|_| ()).unwrap();
    look_before_serving(&images.path(&name), false, false).unwrap();
    let said = std::cell::RefCell::new(String::new());
    let note = |text: String| said.borrow_mut().push_str(&text);
    images.export(&name, &bare.join("out"), Format::Raw, false, &|_, _| (), &note).unwrap();
    assert!(said.borrow().contains("import --format raw"), "{said:?}");
}
