//! Which other files a qcow2 image stands on, and whether its tables are all there.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;

use super::format::read_to_end;

/// Bits of the largest cluster, 2 MiB, which holds the header and all that follows it.
const CLUSTER_BITS: core::ops::RangeInclusive<u32> = 9..=21;
/// Bytes of the longest name of a backing file.
const NAME_MAX: u32 = 1023;
/// The feature of guest data in another file.
const DATA_FILE: u64 = 1 << 2;
/// The feature of table entries that are twice as long.
const EXTENDED_ENTRIES: u64 = 1 << 4;
/// Entries of the longest first table, 32 MiB.
const TABLES_MAX: u32 = 4 << 20;
/// The part of an entry of the first table that is a place.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const SECTOR: u64 = 512;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE_NAME: u32 = 0x4441_5441;

/// The names in a header.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) backing: Option<OsString>,
    pub(super) backing_format: Option<String>,
    /// Where guest data is, if it is not here. The name may be missing.
    pub(super) data: Option<OsString>,
    pub(super) encrypted: bool,
}

/// Reads them; `None` when this is no sound header.
pub(super) fn names(file: &File) -> std::io::Result<Option<Names>> {
    let mut header = [0; 112];
    read_to_end(file, &mut header, 0)?;
    let bits = be32(&header, 20).filter(|bits| CLUSTER_BITS.contains(bits));
    let Some(bits) = bits else { return Ok(None) };
    let mut cluster = vec![0; 1 << bits];
    read_to_end(file, &mut cluster, 0)?;
    let backing = match (be64(&header, 8), be32(&header, 16)) {
        (Some(0) | None, _) | (_, None) => None,
        (_, Some(len)) if len > NAME_MAX => return Ok(None),
        (Some(at), Some(len)) => {
            let mut name = vec![0; len as usize];
            read_to_end(file, &mut name, at)?;
            // Extensions of the header end where the name begins.
            cluster.truncate(usize::try_from(at).unwrap_or(usize::MAX));
            Some(name)
        }
    };
    Ok(judge(&header, &cluster, backing))
}

/// The same, of bytes. `backing` is what the header points to.
fn judge(header: &[u8], cluster: &[u8], backing: Option<Vec<u8>>) -> Option<Names> {
    let mut names = Names { backing: backing.map(OsString::from_vec), ..Names::default() };
    let (features, mut at) = match be32(header, 4)? {
        2 => (0, 72),
        3 => (be64(header, 72)?, be32(header, 100)? as usize),
        _ => return None,
    };
    names.encrypted = be32(header, 32)? != 0;
    if features & DATA_FILE != 0 {
        names.data = Some(OsString::new());
    }
    while let (Some(kind @ 1..), Some(len)) = (be32(cluster, at), be32(cluster, at + 4)) {
        let content = cluster.get(at + 8..)?.get(..len as usize)?;
        match kind {
            BACKING_FORMAT => {
                names.backing_format = Some(String::from_utf8_lossy(content).into_owned());
            }
            DATA_FILE_NAME if names.data.is_some() => {
                names.data = Some(OsString::from_vec(content.to_vec()));
            }
            _ => {}
        }
        at = at.checked_add(8)?.checked_add((len as usize).next_multiple_of(8))?;
    }
    Some(names)
}

/// Whether all tables are in the file, and all compressed clusters, whose ends the converter
/// does not look for: what is missing reads as zeroes, and even those may unpack to something.
pub(super) fn is_whole(file: &File, bytes: u64) -> std::io::Result<bool> {
    let mut header = [0; 112];
    read_to_end(file, &mut header, 0)?;
    let Some(tables) = Tables::read(&header) else { return Ok(false) };
    let within = |at: u64, len: u64| at.checked_add(len).is_some_and(|end| end <= bytes);
    if !within(tables.at, u64::from(tables.count) * 8) {
        return Ok(false);
    }
    let mut places = vec![0; tables.count as usize * 8];
    read_to_end(file, &mut places, tables.at)?;
    let places = places.chunks_exact(8).filter_map(|entry| be64(entry, 0));
    // A file has no more tables than clusters, so that is what bounds the loop.
    let mut left = bytes >> tables.cluster_bits;
    let mut table = vec![0; 1 << tables.cluster_bits];
    for place in places.map(|entry| entry & PLACE).filter(|&place| place != 0) {
        if left == 0 || !within(place, table.len() as u64) {
            return Ok(false);
        }
        left -= 1;
        read_to_end(file, &mut table, place)?;
        let mut entries = table.chunks_exact(tables.entry_bytes).filter_map(|entry| be64(entry, 0));
        if entries.any(|entry| tables.end_of_compressed(entry).is_some_and(|end| end > bytes)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Where the tables of clusters are.
#[derive(Debug)]
struct Tables {
    cluster_bits: u32,
    at: u64,
    count: u32,
    entry_bytes: usize,
}

impl Tables {
    fn read(header: &[u8]) -> Option<Self> {
        let cluster_bits = be32(header, 20).filter(|bits| CLUSTER_BITS.contains(bits))?;
        let count = be32(header, 36).filter(|&count| count <= TABLES_MAX)?;
        let features = if be32(header, 4)? < 3 { 0 } else { be64(header, 72)? };
        let entry_bytes = if features & EXTENDED_ENTRIES == 0 { 8 } else { 16 };
        Some(Self { cluster_bits, at: be64(header, 40)?, count, entry_bytes })
    }

    /// Where the last sector of a compressed cluster ends.
    const fn end_of_compressed(&self, entry: u64) -> Option<u64> {
        if entry & COMPRESSED == 0 {
            return None;
        }
        // Low bits are the place, those above how many sectors follow the one that it is in.
        let count_bits = self.cluster_bits - 8;
        let place_bits = 62 - count_bits;
        let place = entry & ((1 << place_bits) - 1);
        let more = (entry & (COMPRESSED - 1)) >> place_bits;
        Some((place / SECTOR + 1 + more) * SECTOR)
    }
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..)?.first_chunk().copied()?))
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
            head in proptest::collection::vec(any::<u8>(), 0..200),
            version in 2_u32..=3,
            bits in 8_u32..=22,
            places in proptest::collection::vec(0_u64..=2048, 3),
        ) {
            let mut bytes = head;
            bytes.resize(4096, 0);
            bytes[4..8].copy_from_slice(&version.to_be_bytes());
            bytes[20..24].copy_from_slice(&bits.to_be_bytes());
            for (at, place) in [8, 40, 72].into_iter().zip(places) {
                bytes[at..at + 8].copy_from_slice(&place.to_be_bytes());
            }
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            if let Some(names) = names(&file).unwrap() {
                prop_assert!(names.backing.is_none_or(|name| name.len() <= NAME_MAX as usize));
            }
            is_whole(&file, 4096).unwrap();
        }
    }
}
