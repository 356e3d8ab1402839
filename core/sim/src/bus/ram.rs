//! The memory of the simulated guests, with a right on every byte for what the device may do.

/// The device may read the byte.
pub const READ: u8 = 1;
/// The device may read the byte one more time: what is checked is read once.
pub const ONCE: u8 = 2;
/// The device may write the byte.
pub const WRITE: u8 = 4;

/// What memory holds before anybody has written to it.
pub const POISON: u8 = 0xaa;

/// Bytes that lie together in one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The chunk.
    pub chunk: usize,
    /// First byte.
    pub at: usize,
    /// Bytes.
    pub len: usize,
}

impl Extent {
    /// `len` of its bytes from `skip` on.
    #[must_use]
    pub const fn part(self, skip: usize, len: usize) -> Self {
        Self { chunk: self.chunk, at: self.at + skip, len }
    }

    /// Where a byte of a chunk stands in it, if it does.
    #[must_use]
    pub const fn position(self, chunk: usize, at: usize) -> Option<usize> {
        let inside = self.chunk == chunk && at >= self.at && at < self.at + self.len;
        if inside { Some(at - self.at) } else { None }
    }
}

/// Memory of one guest that is contiguous in its address space.
#[derive(Debug)]
pub struct Chunk {
    /// Whose it is.
    pub guest: u32,
    /// Guest-physical address of the first byte.
    pub address: u64,
    /// Whether the device may do anything: memory of a hostile guest, inflight regions.
    pub open: bool,
    bytes: Vec<u8>,
    rights: Vec<u8>,
}

/// All chunks of all guests.
#[derive(Debug, Default)]
pub struct Ram {
    chunks: Vec<Chunk>,
}

impl Ram {
    /// Adds poisoned memory and says its number.
    pub fn add(&mut self, guest: u32, address: u64, len: usize, open: bool) -> usize {
        let (bytes, rights) = (vec![POISON; len], vec![0; if open { 0 } else { len }]);
        self.chunks.push(Chunk { guest, address, open, bytes, rights });
        self.chunks.len() - 1
    }

    /// How many chunks there are.
    #[must_use]
    pub fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    /// A chunk.
    #[must_use]
    pub fn chunk(&self, index: usize) -> &Chunk {
        &self.chunks[index]
    }

    /// Bytes in a chunk.
    #[must_use]
    pub fn len(&self, chunk: usize) -> usize {
        self.chunks[chunk].bytes.len()
    }

    /// Where a guest's address range lies, piece by piece; `None` when some of it is nowhere.
    #[must_use]
    pub fn find(&self, guest: u32, address: u64, len: usize) -> Option<Vec<Extent>> {
        let (mut found, mut address, mut rest) = (Vec::new(), address, len);
        while rest > 0 {
            let (chunk, skip) = self.chunks.iter().enumerate().find_map(|(index, chunk)| {
                let skip = usize::try_from(address.checked_sub(chunk.address)?).ok()?;
                (chunk.guest == guest && skip < chunk.bytes.len()).then_some((index, skip))
            })?;
            let len = rest.min(self.len(chunk) - skip);
            found.push(Extent { chunk, at: skip, len });
            address += len as u64;
            rest -= len;
        }
        Some(found)
    }

    /// The bytes of an extent.
    #[must_use]
    pub fn bytes(&self, extent: Extent) -> &[u8] {
        &self.chunks[extent.chunk].bytes[extent.at..extent.at + extent.len]
    }

    /// The bytes of an extent, to be written.
    pub fn bytes_mut(&mut self, extent: Extent) -> &mut [u8] {
        &mut self.chunks[extent.chunk].bytes[extent.at..extent.at + extent.len]
    }

    /// A little-endian index.
    #[must_use]
    pub fn u16(&self, extent: Extent, offset: u64) -> u16 {
        let at = extent.at + usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = &self.chunks[extent.chunk].bytes;
        u16::from_le_bytes([bytes[at], bytes[at + 1]])
    }

    /// Lets the device do something.
    pub fn grant(&mut self, extent: Extent, right: u8) {
        let rights = &mut self.chunks[extent.chunk].rights;
        if let Some(rights) = rights.get_mut(extent.at..extent.at + extent.len) {
            rights.iter_mut().for_each(|of_byte| *of_byte |= right);
        }
    }

    /// Forbids the device everything.
    pub fn revoke(&mut self, extent: Extent) {
        let rights = &mut self.chunks[extent.chunk].rights;
        if let Some(rights) = rights.get_mut(extent.at..extent.at + extent.len) {
            rights.fill(0);
        }
    }

    /// Whether the device may read all of this now; a right to read once is used up.
    pub fn may_read(&mut self, extent: Extent) -> bool {
        let chunk = &mut self.chunks[extent.chunk];
        if chunk.open {
            return true;
        }
        let mut allowed = true;
        for right in &mut chunk.rights[extent.at..extent.at + extent.len] {
            allowed &= *right & (READ | ONCE) != 0;
            *right &= !ONCE;
        }
        allowed
    }

    /// Whether the device may write all of this now.
    #[must_use]
    pub fn may_write(&self, extent: Extent) -> bool {
        let chunk = &self.chunks[extent.chunk];
        let rights = || &chunk.rights[extent.at..extent.at + extent.len];
        chunk.open || rights().iter().all(|right| right & WRITE != 0)
    }
}
