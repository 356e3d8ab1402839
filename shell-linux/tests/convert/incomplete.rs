//! Sources that end too early.

use std::fs;
use std::path::Path;

use sluice_linux::image::{Format, ImportOptions};

use super::kit::{FORMATS, MIB, Room, refused, room};

/// Cuts a file at many places: what is left is refused, or nothing was lost.
fn cut_everywhere(room: &Room, image: &Path, format: Format, wanted: &[u8], allow: &[&Path]) {
    let whole = fs::read(image).unwrap();
    let allow = allow.iter().map(|&path| path.to_owned()).collect();
    let options = ImportOptions { format: Some(format), allow, pad: false };
    let len = whole.len();
    let near = [1, 2, 100, 511, 512, 513, 1024, 1536, 4096, 65535, 65536, 65537, 131_072];
    let from_end = near.into_iter().filter(|&cut| cut < len).map(|cut| len - cut);
    let sixteenths = (1..16).map(|part| len * part / 16);
    let starts = [1, 200, 512, 1024, 65536].into_iter().filter(|&at| at < len);
    let mut refusals = 0;
    for at in from_end.chain(sixteenths).chain(starts) {
        fs::write(image, &whole[..at]).unwrap();
        match room.import_with(image, "cut", &options) {
            Ok(_) => assert!(room.bytes("cut") == wanted, "{format}, {len} bytes cut to {at}"),
            Err(_) => refusals += 1,
        }
        let _ = fs::remove_file(room.images.path(&super::kit::name("cut")));
    }
    assert!(refusals > 5, "{format}");
    room.has_images(0);
    fs::write(image, &whole).unwrap();
    room.import_with(image, "whole", &options).unwrap();
    assert!(room.bytes("whole") == wanted);
    fs::remove_file(room.images.path(&super::kit::name("whole"))).unwrap();
}

//= spec/convert.md#CNV-7
#[test]
fn half_an_image_is_refused_in_every_format() {
    let room = &room();
    let disk = room.disk("disk", 3 * MIB);
    let wanted = fs::read(&disk).unwrap();
    for format in FORMATS {
        let exact = ["-O", &format.to_string(), "-o", "force_size=on"].map(str::to_owned);
        let options = if format == Format::Vpc { &exact[..] } else { &exact[..2] };
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let image = room.converted(&disk, "image", &options);
        cut_everywhere(room, &image, format, &wanted, &[]);
    }
}

//= spec/convert.md#CNV-7
#[test]
fn compressed_and_unusual_images_are_looked_through_too() {
    let room = &room();
    let disk = room.disk("disk", 3 * MIB);
    let wanted = fs::read(&disk).unwrap();
    let qcow2: [&[&str]; 6] = [
        &["-c", "-O", "qcow2"],
        &["-c", "-O", "qcow2", "-o", "compression_type=zstd"],
        &["-O", "qcow2", "-o", "compat=0.10"],
        &["-O", "qcow2", "-o", "extended_l2=on"],
        &["-O", "qcow2", "-o", "cluster_size=512"],
        &["-O", "qcow2", "-o", "preallocation=falloc"],
    ];
    for options in qcow2 {
        let image = room.converted(&disk, "image", options);
        cut_everywhere(room, &image, Format::Qcow2, &wanted, &[]);
    }
    let stream =
        room.converted(&disk, "i.vmdk", &["-O", "vmdk", "-o", "subformat=streamOptimized"]);
    cut_everywhere(room, &stream, Format::Vmdk, &wanted, &[]);
    let fixed = ["-O", "vpc", "-o", "subformat=fixed,force_size=on"];
    let fixed = room.converted(&disk, "fixed.vhd", &fixed);
    cut_everywhere(room, &fixed, Format::Vpc, &wanted, &[]);
    let solid = room.converted(&disk, "static.vdi", &["-O", "vdi", "-o", "static=on"]);
    cut_everywhere(room, &solid, Format::Vdi, &wanted, &[]);
}

//= spec/convert.md#CNV-7
#[test]
fn extents_of_a_vmdk_have_to_be_whole() {
    let room = &room();
    let disk = room.disk("disk", 3 * MIB);
    let wanted = fs::read(&disk).unwrap();
    for (subformat, part) in [
        ("monolithicFlat", "-flat"),
        ("twoGbMaxExtentFlat", "-f001"),
        ("twoGbMaxExtentSparse", "-s001"),
    ] {
        let option = format!("subformat={subformat}");
        let name = format!("{subformat}.vmdk");
        let image = room.converted(&disk, &name, &["-O", "vmdk", "-o", &option]);
        let extent = room.path(&format!("{subformat}{part}.vmdk"));
        let (code, said) = refused(room.import(&image, "x"));
        assert!(code == 2 && said.contains(part), "{said}");
        let whole = fs::read(&extent).unwrap();
        let allow = vec![extent.clone()];
        let options = ImportOptions { allow, ..ImportOptions::default() };
        for at in [whole.len() / 2, whole.len() - 1, whole.len() - 65536, 512, 0] {
            fs::write(&extent, &whole[..at]).unwrap();
            let (_, said) = refused(room.import_with(&image, "x", &options));
            assert!(said.contains(part), "{subformat} cut to {at}: {said}");
        }
        fs::write(&extent, &whole).unwrap();
        room.import_with(&image, subformat, &options).unwrap();
        assert!(room.bytes(subformat) == wanted);
    }
}

//= spec/convert.md#CNV-7
#[test]
fn a_backing_file_has_to_be_whole_too() {
    let room = &room();
    let disk = room.disk("disk", 3 * MIB);
    let base = room.converted(&disk, "base.qcow2", &["-O", "qcow2"]);
    let top = room.path("top.qcow2");
    let (base_text, top_text) = (base.to_str().unwrap(), top.to_str().unwrap());
    super::kit::qemu_img(&[
        "create", "-q", "-f", "qcow2", "-b", base_text, "-F", "qcow2", top_text,
    ]);
    let options = ImportOptions { allow: vec![base.clone()], ..ImportOptions::default() };
    room.import_with(&top, "whole", &options).unwrap();
    assert!(room.bytes("whole") == fs::read(&disk).unwrap());
    let whole = fs::read(&base).unwrap();
    fs::write(&base, &whole[..whole.len() / 2]).unwrap();
    let (code, said) = refused(room.import_with(&top, "x", &options));
    assert!(code == 1 && said.contains("base.qcow2"), "{said}");
}

/// A VHD that holds what differs from another, which the converter would leave out in silence.
//= spec/convert.md#CNV-7
#[test]
fn half_of_a_pair_of_vhds_is_refused() {
    let room = &room();
    let image = room.converted(&room.disk("disk", 3 * MIB), "d.vhd", &["-O", "vpc"]);
    let mut bytes = fs::read(&image).unwrap();
    let footer = bytes.len() - 512;
    for at in [0, footer] {
        bytes[at + 60..at + 64].copy_from_slice(&4_u32.to_be_bytes());
        bytes[at + 64..at + 68].fill(0);
        let sum: u32 = bytes[at..at + 512].iter().map(|&byte| u32::from(byte)).sum();
        bytes[at + 64..at + 68].copy_from_slice(&(!sum).to_be_bytes());
    }
    fs::write(&image, bytes).unwrap();
    let (code, said) = refused(room.import(&image, "x"));
    assert!(code == 2 && said.contains("merge"), "{said}");
}
