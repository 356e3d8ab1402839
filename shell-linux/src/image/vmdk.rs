//! What a VMDK consists of: files named in a descriptor, and tables of grains.

use std::ffi::OsString;
use std::fmt::Write;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;

use super::format::read_to_end;

/// Bytes of the longest descriptor that is read.
const DESCRIPTOR_MAX: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// What a table entry of a grain that is not in the file may be: nothing there, or zeroes.
const NOT_IN_THE_FILE: core::ops::RangeInclusive<u64> = 0..=1;
/// Says that the directory is found by a second header at the end of the file.
const AT_END: u64 = u64::MAX;
const COMPRESSED: u32 = 1 << 16;

/// What a descriptor says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Descriptor {
    cid: u32,
    parent_cid: Option<u32>,
    parent: Option<OsString>,
    pub(super) extents: Vec<Extent>,
}

/// A file with a piece of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    sectors: u64,
    kind: Kind,
    pub(super) name: OsString,
    first_sector: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Flat,
    Sparse,
}

/// The descriptor of a file, by itself or inside a sparse file; `None` when it is not sound.
pub(super) fn descriptor(file: &File, bytes: u64) -> std::io::Result<Option<Descriptor>> {
    let Some(sparse) = Sparse::of(file)? else {
        let mut text = vec![0; usize::try_from(bytes.min(DESCRIPTOR_MAX)).unwrap_or(0)];
        read_to_end(file, &mut text, 0)?;
        let read = (bytes <= DESCRIPTOR_MAX).then(|| read_descriptor(&text)).flatten();
        return Ok(read.filter(|descriptor| !descriptor.extents.is_empty()));
    };
    // Without a capacity of its own the file would be another descriptor in disguise.
    if sparse.capacity == 0 || sparse.descriptor_sectors > DESCRIPTOR_MAX / SECTOR {
        return Ok(None);
    }
    let mut text = vec![0; usize::try_from(sparse.descriptor_sectors * SECTOR).unwrap_or(0)];
    let Some(at) = sparse.descriptor_at.checked_mul(SECTOR) else { return Ok(None) };
    read_to_end(file, &mut text, at)?;
    // Of what such a descriptor says only the parent counts: the one extent is the file itself.
    let read = read_descriptor(&text);
    Ok(read.map(|descriptor| Descriptor { extents: Vec::new(), ..descriptor }))
}

fn read_descriptor(text: &[u8]) -> Option<Descriptor> {
    let mut descriptor = Descriptor::default();
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    for line in text.split(|&byte| byte == b'\n' || byte == b'\r') {
        let line = line.trim_ascii();
        if let Some(value) = line.strip_prefix(b"CID=") {
            descriptor.cid = hexadecimal(value)?;
        } else if let Some(value) = line.strip_prefix(b"parentCID=") {
            descriptor.parent_cid = Some(hexadecimal(value)?).filter(|&cid| cid != u32::MAX);
        } else if let Some(value) = line.strip_prefix(b"parentFileNameHint=") {
            descriptor.parent = Some(OsString::from_vec(value.trim_ascii().trim_quotes().to_vec()));
        } else if [&b"RW "[..], b"RDONLY ", b"NOACCESS "].iter().any(|way| line.starts_with(way)) {
            descriptor.extents.push(Extent::of(line)?);
        }
    }
    Some(descriptor)
}

trait TrimQuotes {
    fn trim_quotes(&self) -> &Self;
}

impl TrimQuotes for [u8] {
    fn trim_quotes(&self) -> &Self {
        self.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(self)
    }
}

fn hexadecimal(text: &[u8]) -> Option<u32> {
    u32::from_str_radix(core::str::from_utf8(text.trim_ascii()).ok()?, 16).ok()
}

impl Extent {
    /// A line such as `RW 4192256 SPARSE "disk-s001.vmdk"`, with a first sector behind it or not.
    fn of(line: &[u8]) -> Option<Self> {
        let open = line.iter().position(|&byte| byte == b'"')?;
        let close = line.iter().rposition(|&byte| byte == b'"').filter(|&at| at > open)?;
        let mut words = core::str::from_utf8(&line[..open]).ok()?.split_whitespace();
        let (access, sectors, kind) = (words.next()?, words.next()?, words.next()?);
        let kind = match kind {
            "FLAT" | "VMFS" => Kind::Flat,
            "SPARSE" => Kind::Sparse,
            _ => return None,
        };
        let behind = core::str::from_utf8(&line[close + 1..]).ok()?.trim();
        let first_sector = if behind.is_empty() { 0 } else { behind.parse().ok()? };
        let name = OsString::from_vec(line[open + 1..close].to_vec());
        let sectors = sectors.parse().ok()?;
        (access == "RW").then_some(Self { sectors, kind, name, first_sector })
    }

    /// Whether the file has everything that this piece of the disk needs.
    pub(super) fn is_whole(&self, file: &File, bytes: u64) -> std::io::Result<bool> {
        match self.kind {
            Kind::Sparse => is_whole(file, bytes),
            Kind::Flat => {
                let end = self.first_sector.checked_add(self.sectors);
                Ok(end.and_then(|end| end.checked_mul(SECTOR)).is_some_and(|end| end <= bytes))
            }
        }
    }
}

impl Descriptor {
    /// The image that it stands on, if its descriptor says so.
    pub(super) fn take_parent(&mut self) -> Option<OsString> {
        self.parent.take().filter(|_| self.parent_cid.is_some())
    }

    /// The same disk in words of our own, with the extents by other names: nothing of what was
    /// written elsewhere reaches the converter.
    pub(super) fn rewritten<'a>(&self, names: impl Iterator<Item = &'a str>) -> String {
        let mut text = format!(
            "# Disk DescriptorFile\nversion=1\nCID={:08x}\nparentCID={:08x}\n\
             createType=\"twoGbMaxExtentSparse\"\n",
            self.cid,
            self.parent_cid.unwrap_or(u32::MAX)
        );
        for (extent, name) in self.extents.iter().zip(names) {
            let _ = match extent.kind {
                Kind::Flat => {
                    let (sectors, first) = (extent.sectors, extent.first_sector);
                    writeln!(text, "RW {sectors} FLAT \"{name}\" {first}")
                }
                Kind::Sparse => writeln!(text, "RW {} SPARSE \"{name}\"", extent.sectors),
            };
        }
        text
    }
}

/// The header of a file with grains.
#[derive(Debug)]
struct Sparse {
    compressed: bool,
    capacity: u64,
    grain_sectors: u64,
    descriptor_at: u64,
    descriptor_sectors: u64,
    entries: u64,
    directory_at: u64,
}

impl Sparse {
    fn of(file: &File) -> std::io::Result<Option<Self>> {
        let mut header = [0; 512];
        read_to_end(file, &mut header, 0)?;
        Ok(Self::read(&header))
    }

    fn read(header: &[u8; 512]) -> Option<Self> {
        let le32 = |at: usize| header[at..].first_chunk().copied().map(u32::from_le_bytes);
        let le64 = |at: usize| header[at..].first_chunk().copied().map(u64::from_le_bytes);
        header.starts_with(b"KDMV").then_some(())?;
        Some(Self {
            compressed: le32(8)? & COMPRESSED != 0,
            capacity: le64(12)?,
            grain_sectors: le64(20)?,
            descriptor_at: le64(28)?,
            descriptor_sectors: le64(36)?,
            entries: u64::from(le32(44)?),
            directory_at: le64(56)?,
        })
    }

    /// The header that counts, which stands before the end of the file in streams.
    fn last(file: &File, bytes: u64) -> std::io::Result<Option<Self>> {
        let first = Self::of(file)?;
        if first.as_ref().is_none_or(|first| first.directory_at != AT_END) {
            return Ok(first);
        }
        let mut footer = [0; 512];
        read_to_end(file, &mut footer, bytes.saturating_sub(2 * SECTOR))?;
        Ok(Self::read(&footer))
    }

    /// Where in the file a grain has to end, by its entry.
    fn end(&self, number: u64, entry: u64) -> Option<u64> {
        let sectors = if self.compressed {
            // Its length is in front of it; a cut one does not unpack.
            1
        } else {
            // The last one may be a part of a grain.
            let before = number.checked_mul(self.grain_sectors)?;
            self.grain_sectors.min(self.capacity.checked_sub(before)?)
        };
        entry.checked_add(sectors)?.checked_mul(SECTOR)
    }
}

/// Whether a sparse file has its tables and every grain that they point to.
pub(super) fn is_whole(file: &File, bytes: u64) -> std::io::Result<bool> {
    match Sparse::last(file, bytes)? {
        Some(sparse) => Ok(tables_fit(&sparse, file, bytes)?.is_some()),
        None => Ok(false),
    }
}

/// `None` when something lies behind the end of the file.
fn tables_fit(sparse: &Sparse, file: &File, bytes: u64) -> std::io::Result<Option<()>> {
    let within = |at: u64, len: u64| at.checked_add(len).filter(|&end| end <= bytes);
    let (entries, grain) = (sparse.entries, sparse.grain_sectors);
    if !(1..=4096).contains(&entries) || !(1..=1 << 16).contains(&grain) {
        return Ok(None);
    }
    let tables = sparse.capacity.div_ceil(grain).div_ceil(entries);
    let Some(at) = sparse.directory_at.checked_mul(SECTOR) else { return Ok(None) };
    // The directory is in the file, so that is what bounds the loop.
    if tables.checked_mul(4).and_then(|len| within(at, len)).is_none() {
        return Ok(None);
    }
    // So does the room that its tables take.
    let mut left = bytes / (entries * 4);
    let mut table = vec![0; usize::try_from(entries * 4).unwrap_or(0)];
    for number in 0..tables {
        let mut place = [0; 4];
        read_to_end(file, &mut place, at + number * 4)?;
        let place = u64::from(u32::from_le_bytes(place)) * SECTOR;
        if place == 0 {
            continue;
        }
        if left == 0 || within(place, entries * 4).is_none() {
            return Ok(None);
        }
        left -= 1;
        read_to_end(file, &mut table, place)?;
        for (grain, entry) in (number * entries..).zip(table.chunks_exact(4)) {
            let entry = u64::from(u32::from_le_bytes(entry.try_into().unwrap_or_default()));
            let missing = || sparse.end(grain, entry).is_none_or(|end| end > bytes);
            if !NOT_IN_THE_FILE.contains(&entry) && missing() {
                return Ok(None);
            }
        }
    }
    Ok(Some(()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        //= spec/convert.md#CNV-10
        #[test]
        fn headers_of_any_kind_are_judged(
            head in proptest::collection::vec(any::<u8>(), 512),
            numbers in proptest::collection::vec(prop_oneof![0_u64..=64, any::<u64>()], 6),
        ) {
            let mut bytes = head;
            bytes[..4].copy_from_slice(b"KDMV");
            for (at, number) in [12, 20, 28, 36, 44, 56].into_iter().zip(numbers) {
                bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
            }
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            file.set_len(8192).unwrap();
            // What is no place in a file is an error of reading it.
            let _ = descriptor(&file, 8192);
            let _ = is_whole(&file, 8192);
        }

        //= spec/convert.md#CNV-5
        #[test]
        fn only_numbers_of_a_descriptor_are_handed_on(text in "(RW [0-9]{1,4} (FLAT|SPARSE) \"[^\n\r]{1,30}\"( [0-9]{1,3})?\n){1,4}") {
            if let Some(descriptor) = read_descriptor(text.as_bytes()) {
                let names = vec!["N"; descriptor.extents.len()];
                let ours = descriptor.rewritten(names.into_iter());
                let extents: Vec<_> = ours.lines().filter(|line| line.starts_with("RW ")).collect();
                prop_assert_eq!(extents.len(), descriptor.extents.len());
                prop_assert!(extents.iter().all(|line| line.split('"').nth(1) == Some("N")));
            }
        }
    }
}
