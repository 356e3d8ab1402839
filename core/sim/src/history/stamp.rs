//! What is written into every sector, so that each one says where it comes from.

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// What a sector says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Which image, and which run on it.
    pub image: u64,
    /// Which sector it was meant for.
    pub sector: u64,
    /// Which request wrote it; unique within an image's history.
    pub sequence: u64,
    /// Who wrote it.
    pub writer: u32,
}

/// The bytes of one sector, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing but zeroes.
    Zero,
    /// A whole stamp.
    Stamp(Stamp),
    /// A stamp with a sound head, and the first byte that does not belong to it.
    Torn(Stamp, usize),
    /// Anything else, by its hash.
    Other(u64),
}

const MAGIC: u64 = u64::from_le_bytes(*b"sluice\x01\x0a");
/// Words before the fill: magic, image, sector, sequence, writer, checksum.
const HEAD: usize = 6;
const WORDS: usize = SECTOR / 8;
/// An odd constant without pattern (the golden ratio), so that neighbouring words differ in
/// many bits.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What the words differ by: a table, so that filling a sector is plain vector additions.
const FILL: [u64; WORDS] = {
    let mut fill = [0; WORDS];
    let mut at = 1;
    while at < WORDS {
        fill[at] = STEP.wrapping_add(fill[at - 1]);
        at += 1;
    }
    fill
};

/// Depends on every bit of every word: multiplying by an odd number loses nothing.
#[inline]
fn checksum(words: &[u64]) -> u64 {
    let sum = words.iter().zip(FILL).fold(0, |sum: u64, (&word, odd)| {
        sum.wrapping_add((word ^ odd).wrapping_mul(odd << 1 | 1))
    });
    let sum = (sum ^ (sum >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    sum ^ (sum >> 32)
}

impl Stamp {
    /// All words of the sector. They follow from the stamp, so that a sector that is only partly
    /// right shows wherever it is wrong.
    #[inline]
    fn words(&self) -> [u64; WORDS] {
        let head = [MAGIC, self.image, self.sector, self.sequence, u64::from(self.writer)];
        let checksum = checksum(&head);
        let mut words = FILL;
        for word in &mut words {
            *word = word.wrapping_add(checksum);
        }
        words[..HEAD - 1].copy_from_slice(&head);
        words[HEAD - 1] = checksum;
        words
    }

    /// Writes the stamp over a whole sector.
    #[inline]
    pub fn fill(&self, sector: &mut [u8; SECTOR]) {
        for (bytes, word) in sector.chunks_exact_mut(8).zip(self.words()) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
}

impl Content {
    /// Takes a sector apart.
    #[inline]
    #[must_use]
    pub fn of(sector: &[u8; SECTOR]) -> Self {
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(sector.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        }
        let stamp = Stamp {
            image: words[1],
            sector: words[2],
            sequence: words[3],
            writer: (words[4] & u64::from(u32::MAX)).try_into().expect("32 bits"),
        };
        if words[0] != MAGIC {
            if words.iter().all(|&word| word == 0) {
                return Self::Zero;
            }
            return Self::Other(checksum(&words));
        }
        let expected = stamp.words();
        if expected == words {
            return Self::Stamp(stamp);
        }
        if expected[..HEAD] != words[..HEAD] {
            return Self::Other(checksum(&words));
        }
        let at = expected.iter().zip(&words).position(|(a, b)| a != b).unwrap_or(0);
        let differ = (expected[at] ^ words[at]).trailing_zeros() as usize / 8;
        Self::Torn(stamp, 8 * at + differ)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { image: 7, sector: 1 << 40, sequence: 99, writer: u32::MAX };

    #[test]
    fn a_stamp_comes_back_and_a_changed_byte_anywhere_is_seen() {
        let mut sector = [0; SECTOR];
        assert_eq!(Content::of(&sector), Content::Zero);
        STAMP.fill(&mut sector);
        assert_eq!(Content::of(&sector), Content::Stamp(STAMP));
        for at in 0..SECTOR {
            let mut changed = sector;
            changed[at] ^= 0x10;
            match Content::of(&changed) {
                Content::Torn(STAMP, torn_at) => assert_eq!(torn_at, at),
                Content::Other(_) => assert!(at < 8 * HEAD, "byte {at}"),
                other => panic!("byte {at} changed: {other:?}"),
            }
        }
    }

    #[test]
    fn a_sector_made_of_two_stamps_is_torn() {
        let (mut one, mut two) = ([0; SECTOR], [0; SECTOR]);
        STAMP.fill(&mut one);
        Stamp { sequence: 100, ..STAMP }.fill(&mut two);
        one[256..].copy_from_slice(&two[256..]);
        assert_eq!(Content::of(&one), Content::Torn(STAMP, 256));
    }
}
