//! A dirty log that several devices write at the same time.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{MemfdFlags, memfd_create};
use sluice_core::memory::SharedMemory;
use sluice_linux::mapping::{Mapping, Mappings};

use crate::support::alone;

/// Bytes of the log. Two devices meet in each of them.
const BYTES: usize = 50_000;

/// A guest's devices share one log, on one shard or on several: none loses a bit of another's.
//= spec/migration.md#MIG-2
#[test]
fn b47_devices_that_mark_the_same_byte_at_once_lose_no_bit() {
    let _alone = alone();
    let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(BYTES as u64).unwrap();
    let arrived = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for device in 0..2_u32 {
            let (file, arrived) = (&file, &arrived);
            scope.spawn(move || {
                let mut mem = Mappings::default();
                let fd = file.try_clone().unwrap().into();
                let log = mem.insert(Mapping::new(fd, 0, BYTES as u64).unwrap());
                for byte in 0..BYTES {
                    // Both begin with it together.
                    arrived.fetch_add(1, Ordering::SeqCst);
                    let mut spins = 0;
                    while arrived.load(Ordering::SeqCst) < 2 * (byte + 1) {
                        spins += 1;
                        // The other one may need this processor.
                        if spins > 2000 {
                            std::thread::yield_now();
                        }
                        std::hint::spin_loop();
                    }
                    for bit in 0..4 {
                        mem.set_bits(log, byte as u64, 1 << (2 * bit + device)).unwrap();
                    }
                }
            });
        }
    });
    let mut bytes = vec![0; BYTES];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let lost = bytes.iter().filter(|&&byte| byte != 0xff).count();
    assert_eq!(lost, 0, "bytes with bits that were lost");
}
