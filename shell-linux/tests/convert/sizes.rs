//! Disks have the same size before and after.

use std::fs;

use sluice_linux::image::{Format, ImportOptions};

use super::kit::{FORMATS, MIB, name, refused, room};

//= spec/convert.md#CNV-9
#[test]
fn sizes_stay_the_same_to_the_sector() {
    let room = &room();
    for (number, bytes) in [MIB, 8 * MIB + 512, 10 * MIB - 4096, 512].into_iter().enumerate() {
        let image = format!("i{number}");
        if bytes > MIB {
            room.import(&room.disk("disk", bytes), &image).unwrap();
        } else {
            room.images.create(&name(&image), bytes, false).unwrap();
        }
        for format in FORMATS {
            let out = room.path(&format!("{image}.{format}"));
            room.export(&image, &out, format).unwrap();
            let again = format!("{image}-{format}");
            assert_eq!(room.import(&out, &again).unwrap().bytes, bytes, "{format}");
            assert!(room.bytes(&again) == room.bytes(&image), "{format}");
        }
    }
}

//= spec/convert.md#CNV-9
#[test]
fn a_size_that_no_disk_has_is_asked_about() {
    let room = &room();
    let odd = room.path("odd.img");
    fs::write(&odd, vec![7; 1000]).unwrap();
    let (code, said) = refused(room.import(&odd, "x"));
    assert!(code == 2 && said.contains("--pad adds 24 zeroes"), "{said}");
    room.has_images(0);
    let pad = ImportOptions { pad: true, ..ImportOptions::default() };
    assert_eq!(room.import_with(&odd, "x", &pad).unwrap().bytes, 1024);
    // A size that a disk has is not changed by it.
    fs::write(&odd, vec![7; 1024]).unwrap();
    assert_eq!(room.import_with(&odd, "y", &pad).unwrap().bytes, 1024);
    fs::write(&odd, b"").unwrap();
    assert_eq!(refused(room.import_with(&odd, "z", &pad)).0, 1);
}

//= spec/convert.md#CNV-9
#[test]
fn a_vhd_keeps_what_lies_behind_its_last_track() {
    let room = &room();
    let disk = room.disk("disk", 5 * MIB + 512);
    let vhd = room.converted(&disk, "d.vhd", &["-O", "vpc", "-o", "force_size=on"]);
    // Another maker, whose sizes are rounded to tracks by most readers.
    let mut bytes = fs::read(&vhd).unwrap();
    let footer = bytes.len() - 512;
    for at in [0, footer] {
        bytes[at + 28..at + 32].copy_from_slice(b"vpc ");
        bytes[at + 64..at + 68].fill(0);
        let sum: u32 = bytes[at..at + 512].iter().map(|&byte| u32::from(byte)).sum();
        bytes[at + 64..at + 68].copy_from_slice(&(!sum).to_be_bytes());
    }
    fs::write(&vhd, bytes).unwrap();
    room.import_with(&vhd, "x", &ImportOptions { format: Some(Format::Vpc), ..Default::default() })
        .unwrap();
    assert!(room.bytes("x") == fs::read(&disk).unwrap());
}
