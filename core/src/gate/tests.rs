//! The gate, case by case.

use super::*;

/// Numbers that are dispatched; the protocol's names are in the rules.
const KNOWN: [u32; 22] =
    [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 24, 25, 32, 36, 37, 38];
const OWN: [u32; 4] = [7, 18, 21, 31];

fn header(request: u32, flags: u32, size: u32) -> Header {
    Header { request, flags, size }
}

/// A whole message as its rule wants it, answerable.
fn whole(request: u32) -> Facts {
    let rule = rule(request);
    let header = header(request, VERSION, rule.body.0);
    let descriptors = usize::from(rule.descriptors.0);
    Facts {
        writable: true,
        eof: false,
        queued: HEADER_BYTES + rule.body.0 as usize,
        header: header.to_bytes(),
        peeked: HEADER_BYTES,
        descriptors,
        truncated: false,
        word: rule.ring_word.then_some(NO_DESCRIPTOR),
    }
}

fn with(request: u32, change: impl FnOnce(&mut Facts)) -> Decision {
    let mut facts = whole(request);
    change(&mut facts);
    judge(&facts)
}

fn requests() -> impl Iterator<Item = u32> {
    (0..=64).chain([1000, 1 << 16 | 1, 1 << 31, u32::MAX])
}

#[test]
fn headers_keep_their_bytes() {
    let header = header(0x0102_0304, 0x0506_0708, 0x090a_0b0c);
    assert_eq!(Header::from_bytes(header.to_bytes()), header);
    assert_eq!(header.answer(8), self::header(0x0102_0304, 5, 8));
    assert!(self::header(1, 9, 0).needs_reply());
    assert!(!self::header(1, 1, 0).needs_reply());
}

//= spec/vhost-user.md#VHU-3
#[test]
fn b05_every_number_has_an_arm() {
    for request in requests() {
        let arm = match request {
            _ if KNOWN.contains(&request) => Arm::Known,
            _ if OWN.contains(&request) => Arm::Own,
            _ => Arm::Unknown,
        };
        assert_eq!(rule(request).arm, arm, "{request}");
        let Decision::Whole(decided, header) = judge(&whole(request)) else {
            panic!("{request} is refused");
        };
        assert_eq!((decided, header.request), (arm, request));
        assert!(rule(request).body.0 <= rule(request).body.1);
        assert!(rule(request).body.1 <= BODY_BYTES_MAX);
        assert!(rule(request).descriptors.1 <= DESCRIPTORS_MAX);
    }
}

//= spec/vhost-user.md#VHU-1
#[test]
fn b01_a_piece_waits_and_a_cut_piece_is_refused() {
    let nothing = Facts::default();
    assert_eq!(judge(&nothing), Decision::Idle);
    assert_eq!(judge(&Facts { eof: true, ..nothing }), Decision::Eof);
    for queued in 1..HEADER_BYTES {
        for writable in [false, true] {
            let facts = Facts { writable, queued, peeked: queued, ..nothing };
            assert_eq!(judge(&facts), Decision::Wait);
            assert_eq!(judge(&Facts { eof: true, ..facts }), Decision::Bad(GateFault::Cut));
        }
    }
    // All of a header, and every piece of a body.
    for request in requests() {
        let size = rule(request).body.1 as usize;
        for queued in HEADER_BYTES..HEADER_BYTES + size {
            let cut = |f: &mut Facts| {
                f.header = header(request, VERSION, rule(request).body.1).to_bytes();
                f.queued = queued;
            };
            assert_eq!(with(request, cut), Decision::Wait);
            let end = |f: &mut Facts| {
                cut(f);
                f.eof = true;
            };
            assert_eq!(with(request, end), Decision::Bad(GateFault::Cut));
        }
    }
}

//= spec/vhost-user.md#VHU-1
#[test]
fn b28_no_message_enters_without_room_for_its_answer() {
    for request in requests() {
        for eof in [false, true] {
            let full = |f: &mut Facts| (f.writable, f.eof) = (false, eof);
            assert_eq!(with(request, full), Decision::WaitWrite, "{request}, at the end {eof}");
        }
        assert!(matches!(with(request, |f| f.eof = true), Decision::Whole(..)));
        assert!(matches!(with(request, |f| f.queued += 500), Decision::Whole(..)));
    }
}

//= spec/vhost-user.md#VHU-2
#[test]
fn b02_b03_sizes_are_judged_by_the_header_alone() {
    for request in requests() {
        let (least, most) = rule(request).body;
        for size in (0..=BODY_BYTES_MAX + 1).chain([1 << 16, 1 << 31, u32::MAX - 11, u32::MAX]) {
            let decision = with(request, |f| {
                f.header = header(request, VERSION, size).to_bytes();
                f.queued = HEADER_BYTES;
            });
            let expected = match size {
                _ if size < least || size > most => Decision::Bad(GateFault::Size),
                0 => Decision::Whole(rule(request).arm, header(request, VERSION, 0)),
                _ => Decision::Wait,
            };
            assert_eq!(decision, expected, "{request} with {size} bytes");
        }
    }
}

//= spec/vhost-user.md#VHU-2
#[test]
fn b04_flags_are_a_version_and_a_wish_for_an_answer() {
    for request in requests() {
        for flags in (0..=0xff).chain((0..32).map(|bit| 1 << bit | VERSION)) {
            let decision = with(request, |f| {
                f.header = header(request, flags, rule(request).body.0).to_bytes();
            });
            let good = flags == VERSION || flags == VERSION | NEED_REPLY;
            assert_eq!(matches!(decision, Decision::Whole(..)), good, "{request} with {flags:#x}");
            assert_eq!(decision == Decision::Bad(GateFault::Flags), !good);
        }
    }
}

//= spec/vhost-user.md#VHU-2
#[test]
fn b06_b07_b08_descriptors_are_counted() {
    for request in requests() {
        let (fewest, most) = rule(request).descriptors;
        for count in 0..=255 {
            let decision = with(request, |f| {
                f.descriptors = usize::from(count);
                f.word = None;
            });
            let good = (fewest..=most).contains(&count);
            let fault = Decision::Bad(GateFault::Descriptors);
            assert_eq!(decision == fault, !good, "{request} with {count} descriptors");
        }
        let fault = Decision::Bad(GateFault::Descriptors);
        assert_eq!(with(request, |f| f.truncated = true), fault);
    }
    assert_eq!(rule(5).descriptors, (1, 32), "one for each region");
    assert_eq!(rule(37).descriptors, (1, 1));
}

/// Messages sent back to back: a look at one without descriptors shows those of the next.
//= spec/vhost-user.md#VHU-2
#[test]
fn descriptors_may_belong_to_a_message_that_waits_behind() {
    let behind = |request, descriptors, word| {
        with(request, |f| {
            f.queued += 20;
            (f.descriptors, f.word) = (descriptors, word);
        })
    };
    for descriptors in 0..=32 {
        assert!(matches!(behind(2, descriptors, None), Decision::Whole(..)));
    }
    assert!(matches!(behind(13, 1, Some(NO_DESCRIPTOR)), Decision::Whole(..)));
    // No message has so many, and one that needs some cannot do with none.
    assert_eq!(behind(2, 33, None), Decision::Bad(GateFault::Descriptors));
    assert_eq!(behind(37, 0, None), Decision::Bad(GateFault::Descriptors));
}

//= spec/vhost-user.md#VHU-2
#[test]
fn b09_descriptors_on_a_piece_of_a_header_are_refused() {
    for peeked in 1..HEADER_BYTES {
        let decision = with(12, |f| (f.peeked, f.descriptors) = (peeked, 1));
        assert_eq!(decision, Decision::Bad(GateFault::SplitHeader));
    }
}

//= spec/vhost-user.md#VHU-4
#[test]
fn b13_b14_a_ring_word_agrees_with_the_descriptors() {
    for request in [12, 13, 14] {
        let decide = |word: u64, descriptors| {
            with(request, |f| (f.word, f.descriptors) = (Some(word), descriptors))
        };
        for ring in 0..=0xff {
            assert!(matches!(decide(ring, 1), Decision::Whole(..)));
            assert!(matches!(decide(ring | NO_DESCRIPTOR, 0), Decision::Whole(..)));
            assert_eq!(decide(ring, 0), Decision::Bad(GateFault::RingWord));
            assert_eq!(decide(ring | NO_DESCRIPTOR, 1), Decision::Bad(GateFault::RingWord));
        }
        for bit in 9..64 {
            assert_eq!(decide(1 << bit, 1), Decision::Bad(GateFault::RingWord));
            let silent = 1 << bit | NO_DESCRIPTOR;
            assert_eq!(decide(silent, 0), Decision::Bad(GateFault::RingWord));
        }
        // A body that comes later than its header is not seen here.
        assert!(matches!(with(request, |f| f.word = None), Decision::Whole(..)));
    }
    // Other bodies are no ring words.
    assert!(matches!(with(2, |f| f.word = Some(u64::MAX)), Decision::Whole(..)));
}
