//! Files that hold a disk in a way that is not read here.

/// Something that has to be unpacked or converted before it is a disk.
#[derive(Debug, PartialEq, Eq)]
pub struct Container {
    /// What it is.
    pub what: &'static str,
    /// The command to run first, on FILE.
    pub first: &'static str,
}

/// What marks a container: bytes at a place.
struct Mark {
    at: usize,
    bytes: &'static [u8],
    container: Container,
}

const fn mark(at: usize, bytes: &'static [u8], what: &'static str, first: &'static str) -> Mark {
    Mark { at, bytes, container: Container { what, first } }
}

/// The first version of qcow.
pub(super) static QCOW1: Container = Container {
    what: "a qcow image of version 1",
    first: "qemu-img convert -f qcow -O qcow2 FILE NEW",
};

/// A fixed VHD is a raw disk with a footer behind it.
static FIXED_VHD: Container = Container {
    what: "a fixed VHD, going by its last 512 bytes",
    first: "sluice image import --format vpc FILE NAME",
};

static DMG: Container = Container {
    what: "a disk image of macOS (dmg), going by its last 512 bytes",
    first: "qemu-img convert -f dmg -O raw FILE NEW",
};

static LZMA: Container = Container { what: "compressed (lzma)", first: "unlzma --keep FILE" };

static OLD_TAR: Container = Container { what: "an archive (tar)", first: "tar -xf FILE" };

/// By their first bytes. File systems, partition tables, ISO 9660 and LUKS are not among them:
/// those are what is on a disk.
static MARKS: [Mark; 30] = [
    mark(0, b"\x1f\x8b", "compressed (gzip)", "gunzip --keep FILE"),
    mark(0, b"\x1f\x9d", "compressed (compress)", "gunzip --keep FILE"),
    mark(0, b"\xfd7zXZ\0", "compressed (xz)", "unxz --keep FILE"),
    mark(0, b"\x28\xb5\x2f\xfd", "compressed (zstd)", "unzstd FILE"),
    mark(0, b"BZh", "compressed (bzip2)", "bunzip2 --keep FILE"),
    mark(0, b"\x04\x22\x4d\x18", "compressed (lz4)", "unlz4 FILE"),
    mark(0, b"\x02\x21\x4c\x18", "compressed (lz4)", "unlz4 FILE"),
    mark(0, b"LZIP", "compressed (lzip)", "lzip --decompress --keep FILE"),
    mark(0, b"\x89LZO\0\r\n\x1a\n", "compressed (lzop)", "lzop --decompress FILE"),
    mark(0, b"PK\x03\x04", "an archive (zip)", "unzip FILE"),
    mark(0, b"PK\x05\x06", "an archive (zip)", "unzip FILE"),
    mark(0, b"PK\x07\x08", "an archive (zip)", "unzip FILE"),
    mark(0, b"7z\xbc\xaf\x27\x1c", "an archive (7z)", "7z x FILE"),
    mark(0, b"Rar!\x1a\x07", "an archive (rar)", "unrar x FILE"),
    mark(0, b"!<arch>\n", "an archive (ar)", "ar x FILE"),
    mark(0, b"070701", "an archive (cpio)", "cpio --extract --file FILE"),
    mark(0, b"MSWIM\0\0\0", "an archive (wim)", "wimapply FILE DIR"),
    mark(257, b"ustar", "an archive (tar, as an OVA is one)", "tar -xf FILE"),
    mark(0, b"COWD", "a VMDK of an ESX snapshot", "vmkfstools --clonevirtualdisk FILE NEW"),
    mark(0, b"QED\0", "a qed image", "qemu-img convert -f qed -O qcow2 FILE NEW"),
    mark(0, b"WithoutFreeSpace", "a Parallels image", PARALLELS),
    mark(0, b"WithouFreSpacExt", "a Parallels image", PARALLELS),
    mark(
        0,
        b"Bochs Virtual HD Image",
        "a Bochs image",
        "qemu-img convert -f bochs -O qcow2 FILE NEW",
    ),
    mark(0, b"#!/bin/sh\n#V2.0 Format\n", "a cloop image", CLOOP),
    mark(0, b"\x3a\xff\x26\xed", "a sparse image of Android", "simg2img FILE NEW"),
    mark(0, b"EVF\x09\x0d\x0a\xff\0", "an EnCase image", "ewfexport FILE"),
    mark(0, b"EVF2\r\n\x81\0", "an EnCase image", "ewfexport FILE"),
    mark(0, b"partclone-image", "a partclone image", "partclone.restore -s FILE -o NEW"),
    mark(0, b"sprs", "a sparse image of macOS", "hdiutil convert -format UDTO -o NEW FILE"),
    mark(0, b"shdw", "a sparse image of macOS", "hdiutil convert -format UDTO -o NEW FILE"),
];

const PARALLELS: &str = "qemu-img convert -f parallels -O qcow2 FILE NEW";
const CLOOP: &str = "qemu-img convert -f cloop -O qcow2 FILE NEW";

/// The container that a file's first and last 512 bytes tell of, if any.
pub(super) fn told_by(head: &[u8; 512], foot: &[u8]) -> Option<&'static Container> {
    let there = |mark: &&Mark| head[mark.at..].starts_with(mark.bytes);
    if let Some(mark) = MARKS.iter().find(there) {
        return Some(&mark.container);
    }
    match () {
        () if foot.starts_with(b"conectix") => Some(&FIXED_VHD),
        () if foot.starts_with(b"koly") => Some(&DMG),
        () if is_lzma(head) => Some(&LZMA),
        () if is_old_tar(head) => Some(&OLD_TAR),
        () => None,
    }
}

/// The format has no magic number: properties, a dictionary's size, the size of what is inside.
fn is_lzma(head: &[u8; 512]) -> bool {
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (dictionary, low, high) = (word(1), word(5), word(9));
    let unknown = (low, high) == (u32::MAX, u32::MAX);
    head[0] == 0x5d
        && dictionary >= 4096
        && (dictionary.is_power_of_two() || (dictionary / 3 * 2).is_power_of_two())
        && (unknown || (high < 256 && (low, high) != (0, 0)))
        // The range coder begins with a zero.
        && head[13] == 0
}

/// Archives from before `ustar` are known by the sum over their first header alone.
fn is_old_tar(head: &[u8; 512]) -> bool {
    let sum: u64 = head.iter().map(|&byte| u64::from(byte)).sum();
    let field: u64 = head[148..156].iter().map(|&byte| u64::from(byte)).sum();
    let text = head[148..156].trim_ascii().split(|&b| b == 0).next().unwrap_or_default();
    let said = core::str::from_utf8(text.trim_ascii()).ok();
    let said = said.and_then(|text| u64::from_str_radix(text, 8).ok());
    head[0] != 0 && said == Some(sum - field + 8 * u64::from(b' '))
}
