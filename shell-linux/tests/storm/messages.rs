//! Messages that are nearly right, and some that are not.

use std::os::fd::{BorrowedFd, OwnedFd};

use sluice_sim::prng::Prng;

use crate::support::client::{
    FEATURES, NEED_REPLY, NO_FD, PROTOCOL, VERSION, event, longs, message, request, words,
};
use crate::support::guest::{Guest, MEMORY, USER};
use crate::zoo::Zoo;

/// Requests of which a storm is made, the unknown ones last.
const REQUESTS: [u32; 35] = [
    1, 2, 3, 4, 5, 5, 5, 6, 7, 8, 9, 10, 11, 12, 12, 13, 13, 14, 15, 16, 17, 18, 18, 21, 24, 25,
    31, 32, 32, 36, 37, 38, 34, 40, 99,
];

/// Numbers that make a difference.
const NUMBERS: [u64; 16] =
    [0, 1, 2, 8, 63, 64, 128, 256, 1024, 4096, 0x1_0000, MEMORY, USER, 1 << 40, 1 << 63, u64::MAX];

/// How many descriptors come along: most messages have one, some more than may be.
pub(crate) fn descriptors(prng: &mut Prng) -> usize {
    match prng.below(100) {
        0..40 => 0,
        40..90 => 1,
        90..97 => prng.index(4),
        97..99 => prng.index(33),
        _ => 40,
    }
}

/// What brings a device to a ring that runs.
pub(crate) fn setup() -> Vec<(Vec<u8>, Option<OwnedFd>)> {
    let plain = |request, body: Vec<u8>| (message(request, VERSION, &body), None);
    let ring = |request| (message(request, VERSION, &longs(&[0])), Some(event()));
    vec![
        plain(request::GET_FEATURES, Vec::new()),
        plain(request::SET_PROTOCOL_FEATURES, longs(&[PROTOCOL])),
        plain(request::SET_OWNER, Vec::new()),
        plain(request::SET_FEATURES, longs(&[FEATURES])),
        (message(request::SET_MEM_TABLE, VERSION, &Guest::table()), Some(Zoo::memory())),
        plain(request::SET_VRING_NUM, words(&[0, 8])),
        plain(request::SET_VRING_BASE, words(&[0, 0])),
        plain(request::SET_VRING_ADDR, Guest::addresses(0)),
        ring(request::SET_VRING_CALL),
        ring(request::SET_VRING_KICK),
        plain(request::SET_VRING_ENABLE, words(&[0, 1])),
    ]
}

/// A message with so many descriptors.
pub(crate) fn wild(prng: &mut Prng, fds: &[BorrowedFd<'_>]) -> Vec<u8> {
    let request = match prng.below(50) {
        0 => u32::try_from(prng.below(1 << 32)).expect("32 bits"),
        _ => prng.pick(&REQUESTS),
    };
    let mut body = body(prng, request, fds.len());
    if prng.chance(15) {
        let len = prng.index(body.len() + 64);
        body.resize(len, 0xff);
    }
    let reply = if prng.chance(500) { NEED_REPLY } else { 0 };
    let flags = if prng.chance(5) { prng.index(64) } else { 0 };
    let mut bytes =
        message(request, VERSION | reply | u32::try_from(flags).expect("six bits"), &body);
    if prng.chance(3) {
        bytes.truncate(1 + prng.index(bytes.len()));
    }
    bytes
}

fn body(prng: &mut Prng, request: u32, fds: usize) -> Vec<u8> {
    let mut long = || prng.pick(&NUMBERS);
    let index = |prng: &mut Prng| u32::try_from(prng.index(6)).expect("small");
    match request {
        1 | 3 | 4 | 15 | 17 | 34 | 36 | 7 | 21 => Vec::new(),
        2 => longs(&[if long() > 1 { FEATURES } else { long() }]),
        16 => longs(&[if long() > 1 { PROTOCOL } else { long() }]),
        5 => {
            let mut table = words(&[u32::try_from(fds).expect("few"), 0]);
            for region in 0..fds as u64 {
                let far = region << 32;
                let size = if long() > 8 { MEMORY } else { long() };
                table.extend(longs(&[far, size, USER + far, if long() > 8 { 0 } else { long() }]));
            }
            table
        }
        6 => longs(&[long(), long()]),
        8 | 10 | 11 | 18 => {
            let value = u32::try_from(long() & 0xffff_ffff).expect("32 bits");
            let value = if request == 18 { value & 3 } else { value };
            words(&[index(prng), value])
        }
        9 => Guest::addresses(index(prng)),
        12..=14 => longs(&[u64::from(index(prng)) | if fds == 0 { NO_FD } else { 0 }]),
        24 | 25 => {
            let size = 1 + prng.index(300);
            let at = u32::try_from(prng.index(300)).expect("small");
            let head = words(&[at, u32::try_from(size).expect("small"), 0]);
            [head, vec![1; size]].concat()
        }
        31 | 32 => {
            let shape = long() & 0xffff | (long() & 0xffff) << 16;
            longs(&[if request == 31 { 0 } else { long() }, 0, shape])
        }
        37 | 38 => longs(&[0, long(), long(), long(), 0]),
        _ => vec![0; prng.index(64)],
    }
}
