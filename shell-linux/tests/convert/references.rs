//! Images that name other files and hosts.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use sluice_linux::image::{Format, ImportOptions};

use super::kit::{MIB, Room, qemu_img, refused, room};

/// An image without contents that says of itself what `options` say.
fn made(room: &Room, name: &str, format: &str, options: &[&str]) -> PathBuf {
    let path = room.path(name);
    let path_text = path.to_str().unwrap();
    qemu_img(&[&["create", "-q", "-u", "-f", format], options, &[path_text, "1M"]].concat());
    path
}

fn text_descriptor(room: &Room, name: &str, extents: &str) -> PathBuf {
    let path = room.path(name);
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\n\
         createType=\"twoGbMaxExtentFlat\"\n{extents}\nddb.adapterType = \"ide\"\n"
    );
    fs::write(&path, text).unwrap();
    path
}

fn allowing(files: &[&Path]) -> ImportOptions {
    let allow = files.iter().map(|&file| file.to_owned()).collect();
    ImportOptions { allow, ..ImportOptions::default() }
}

//= spec/convert.md#CNV-5
#[test]
fn files_that_an_image_names_are_refused_by_name() {
    let room = &room();
    let secret = room.path("secret");
    fs::write(&secret, vec![b'S'; 1 << 20]).unwrap();
    let shown = secret.to_str().unwrap();
    let backed = made(room, "backed.qcow2", "qcow2", &["-b", shown, "-F", "raw"]);
    let data_file = format!("data_file={shown},data_file_raw=on");
    let elsewhere = made(room, "data.qcow2", "qcow2", &["-o", &data_file]);
    fs::write(&secret, vec![b'S'; 1 << 20]).unwrap();
    let extent = text_descriptor(room, "extent.vmdk", &format!("RW 2048 FLAT \"{shown}\" 0"));
    let relative = text_descriptor(room, "relative.vmdk", "RW 2048 VMFS \"secret\"");
    let sparse = text_descriptor(room, "sparse.vmdk", &format!("RW 2048 SPARSE \"{shown}\""));
    for image in [&backed, &elsewhere, &extent, &relative, &sparse] {
        let (code, said) = refused(room.import(image, "x"));
        assert!(code == 2 && said.contains(shown) && said.contains("--allow"), "{said}");
        room.has_images(0);
    }
    // Another file than the one that is meant is not enough.
    let other = room.disk("other", MIB);
    assert_eq!(refused(room.import_with(&backed, "x", &allowing(&[&other]))).0, 2);
    for (number, image) in [&backed, &elsewhere, &extent, &relative].into_iter().enumerate() {
        let to = format!("allowed-{number}");
        room.import_with(image, &to, &allowing(&[&other, &secret])).unwrap();
        assert!(room.bytes(&to) == vec![b'S'; 1 << 20], "{image:?}");
    }
}

//= spec/convert.md#CNV-5
#[test]
fn chains_are_looked_at_to_their_end() {
    let room = &room();
    let secret = room.path("secret");
    let shown = secret.to_str().unwrap();
    let data_file = format!("data_file={shown},data_file_raw=on");
    let bottom = made(room, "bottom.qcow2", "qcow2", &["-o", &data_file]);
    fs::write(&secret, vec![b'S'; 1 << 20]).unwrap();
    let middle = made(room, "middle.qcow2", "qcow2", &["-b", "bottom.qcow2", "-F", "qcow2"]);
    let top = made(room, "top.qcow2", "qcow2", &["-b", "middle.qcow2", "-F", "qcow2"]);
    let (_, said) = refused(room.import(&top, "x"));
    assert!(said.contains("middle.qcow2"), "{said}");
    let (_, said) = refused(room.import_with(&top, "x", &allowing(&[&middle])));
    assert!(said.contains("bottom.qcow2"), "{said}");
    let (_, said) = refused(room.import_with(&top, "x", &allowing(&[&middle, &bottom])));
    assert!(said.contains(shown), "{said}");
    room.import_with(&top, "x", &allowing(&[&middle, &bottom, &secret])).unwrap();
    assert!(room.bytes("x") == vec![b'S'; 1 << 20]);
    // A chain without an end.
    let itself = made(room, "itself.qcow2", "qcow2", &["-b", "itself.qcow2", "-F", "qcow2"]);
    assert_eq!(refused(room.import_with(&itself, "y", &allowing(&[&itself]))).0, 2);
}

//= spec/convert.md#CNV-5
#[test]
fn a_parent_of_a_vmdk_is_a_reference_too() {
    let room = &room();
    let disk = room.disk("disk", 4 * MIB);
    let parent = room.converted(&disk, "parent.vmdk", &["-O", "vmdk"]);
    let child = room.path("child.vmdk");
    let options = format!("backing_file={},backing_fmt=vmdk", parent.display());
    qemu_img(&["create", "-q", "-f", "vmdk", "-o", &options, child.to_str().unwrap()]);
    let (code, said) = refused(room.import(&child, "x"));
    assert!(code == 2 && said.contains("parent.vmdk"), "{said}");
    room.import_with(&child, "x", &allowing(&[&parent])).unwrap();
    assert!(room.bytes("x") == fs::read(&disk).unwrap());
}

//= spec/convert.md#CNV-5
#[test]
fn other_hosts_cannot_be_allowed() {
    let room = &room();
    let socket = room.path("nbd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let secret = room.path("secret");
    let address = format!("nbd+unix:///x?socket={}", socket.display());
    let json = format!("json:{{\"driver\":\"file\",\"filename\":\"{}\"}}", secret.display());
    let addresses = [
        &address[..],
        &json,
        "nbd://127.0.0.1:10809/x",
        "https://127.0.0.1/x",
        "ssh://h/x",
        "fat:/etc",
    ];
    for (number, address) in addresses.into_iter().enumerate() {
        let backed = made(room, &format!("{number}.qcow2"), "qcow2", &["-b", address, "-F", "raw"]);
        let quoted = address.replace('"', "'");
        let extent = format!("RW 2048 FLAT \"{quoted}\" 0");
        let extent = text_descriptor(room, &format!("{number}.vmdk"), &extent);
        for image in [backed, extent] {
            let (code, said) = refused(room.import(&image, "x"));
            assert!(code == 2 && said.contains("no file here"), "{address}: {said}");
        }
    }
    assert!(listener.accept().is_err(), "somebody called");
}

/// A sparse file without a capacity of its own is a descriptor in disguise.
//= spec/convert.md#CNV-5
#[test]
fn a_descriptor_inside_a_sparse_file_is_not_followed() {
    let room = &room();
    let secret = room.path("secret");
    fs::write(&secret, vec![b'S'; 1 << 20]).unwrap();
    let image = room.converted(&room.disk("disk", MIB), "x.vmdk", &["-O", "vmdk"]);
    let file = fs::File::options().write(true).open(&image).unwrap();
    file.write_all_at(&[0; 8], 12).unwrap();
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n\
         createType=\"monolithicFlat\"\nRW 2048 FLAT \"{}\" 0\n\0",
        secret.display()
    );
    file.write_all_at(text.as_bytes(), 512).unwrap();
    assert_eq!(refused(room.import(&image, "x")).0, 1);
    assert_eq!(refused(room.import_with(&image, "x", &allowing(&[&secret]))).0, 1);
    // The same as an extent of an honest descriptor.
    let outer = text_descriptor(room, "outer.vmdk", "RW 2048 SPARSE \"x.vmdk\"");
    assert_eq!(refused(room.import_with(&outer, "x", &allowing(&[&image]))).0, 1);
}

//= spec/convert.md#CNV-4
#[test]
fn what_was_exported_as_raw_is_raw() {
    let room = &room();
    let secret = room.path("secret");
    fs::write(&secret, vec![b'S'; 1 << 20]).unwrap();
    let shown = secret.to_str().unwrap();
    let header = fs::read(made(room, "h.qcow2", "qcow2", &["-b", shown, "-F", "raw"])).unwrap();
    let name = super::kit::name("guest");
    room.images.create(&name, MIB, false).unwrap();
    let disk = fs::File::options().write(true).open(room.images.path(&name)).unwrap();
    disk.write_all_at(&header, 0).unwrap();
    let mut wanted = header.clone();
    wanted.resize(1 << 20, 0);
    for to in ["out.raw", "out.img", "out.qcow2"] {
        let exported = room.path(to);
        room.export("guest", &exported, Format::Raw).unwrap();
        room.import(&exported, &format!("again-{to}x")).unwrap();
        assert!(room.bytes(&format!("again-{to}x")) == wanted);
    }
    // Without the mark, as after a copy to another machine, nothing is guessed.
    let copied = room.path("copied.raw");
    fs::write(&copied, &wanted).unwrap();
    let (code, said) = refused(room.import(&copied, "x"));
    assert!(code == 2 && said.contains("--format raw"), "{said}");
    let raw = ImportOptions { format: Some(Format::Raw), ..ImportOptions::default() };
    room.import_with(&copied, "x", &raw).unwrap();
    assert!(room.bytes("x") == wanted);
    let qcow2 = ImportOptions { format: Some(Format::Qcow2), ..ImportOptions::default() };
    assert!(refused(room.import_with(&copied, "y", &qcow2)).1.contains(shown));
}

//= spec/convert.md#CNV-8
#[test]
fn names_of_sources_are_literal() {
    let room = &room();
    let disk = room.disk("disk", MIB);
    let wanted = fs::read(&disk).unwrap();
    let qcow2 = fs::read(room.converted(&disk, "plain", &["-O", "qcow2"])).unwrap();
    let names: [&[u8]; 8] = [
        b"a,file.filename=b",
        b"nbd:localhost:1",
        b"json:{\"driver\":\"null-co\"}",
        b"two\nlines",
        b"-O",
        b"quote\"'\\",
        b"\xff\xfe",
        b"%s$(x) \x1b[31m",
    ];
    for (number, bytes) in names.into_iter().enumerate() {
        let name = OsString::from_vec(bytes.to_vec());
        let path = room.dir.path().join(&name);
        fs::write(&path, &qcow2).unwrap();
        room.import(&path, &format!("q{number}")).unwrap();
        assert!(room.bytes(&format!("q{number}")) == wanted, "{name:?}");
        fs::write(&path, &qcow2[..200]).unwrap();
        let (_, said) = refused(room.import(&path, "x"));
        assert!(!said.contains(['\n', '\x1b']), "{said:?}");
        let exported = room
            .dir
            .path()
            .join([b"e", bytes].concat().iter().map(|&b| char::from(b)).collect::<String>());
        room.export(&format!("q{number}"), &exported, Format::Vdi).unwrap();
        room.import(&exported, &format!("e{number}")).unwrap();
    }
}

//= spec/convert.md#CNV-7
#[test]
fn encrypted_images_are_refused_as_that() {
    let room = &room();
    let image = made(room, "x.qcow2", "qcow2", &[]);
    let file = fs::File::options().write(true).open(&image).unwrap();
    file.write_all_at(&2_u32.to_be_bytes(), 32).unwrap();
    let (code, said) = refused(room.import(&image, "x"));
    assert!(code == 2 && said.contains("encrypted"), "{said}");
}
