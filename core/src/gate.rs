//! The gate of a vhost-user connection: what may be read as a message.
//!
//! A shell looks at a socket without taking anything from it and asks [`judge`]. Only a message
//! that is there as a whole, is plausible, and whose answer has room is let in, so that reading
//! and answering it can neither block nor lose step with the stream. What a message means is
//! [`device`](crate::device)'s to say.

/// Bytes of a message's header.
pub const HEADER_BYTES: usize = 12;

/// Bytes of the largest body.
pub const BODY_BYTES_MAX: u32 = 4096;

/// Descriptors that may come with one message.
pub const DESCRIPTORS_MAX: u8 = 32;

/// Bits of a ring word that carry the ring's number; the next one says that there is no
/// descriptor.
const RING_BITS: u64 = 0xff;
const NO_DESCRIPTOR: u64 = 1 << 8;

const VERSION_MASK: u32 = 0x3;
const VERSION: u32 = 0x1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
const FLAGS_KNOWN: u32 = VERSION_MASK | REPLY | NEED_REPLY;

/// What every message begins with, in the byte order of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Header {
    /// The request's number.
    pub request: u32,
    /// Version and flags.
    pub flags: u32,
    /// Bytes of the body.
    pub size: u32,
}

impl Header {
    /// The header in these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; HEADER_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Self {
            request: u32::from_ne_bytes([a, b, c, d]),
            flags: u32::from_ne_bytes([e, f, g, h]),
            size: u32::from_ne_bytes([i, j, k, l]),
        }
    }

    /// The bytes of this header.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let [a, b, c, d] = self.request.to_ne_bytes();
        let [e, f, g, h] = self.flags.to_ne_bytes();
        let [i, j, k, l] = self.size.to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l]
    }

    /// The header of an answer with a body of `size` bytes.
    #[must_use]
    pub const fn answer(self, size: u32) -> Self {
        Self { request: self.request, flags: VERSION | REPLY, size }
    }

    /// Whether the front end waits for an answer to a request that has none by itself.
    #[must_use]
    pub const fn needs_reply(self) -> bool {
        self.flags & NEED_REPLY != 0
    }
}

/// Who reads and answers a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Arm {
    /// It is dispatched as the message it is.
    Known,
    /// It is taken off the stream and answered by hand.
    Own,
    /// It is taken off the stream, and refused if the front end wants to know.
    Unknown,
}

/// What a request may look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Rule {
    /// Who answers it.
    pub arm: Arm,
    /// Bytes of the shortest and of the longest body.
    pub body: (u32, u32),
    /// The fewest and the most descriptors.
    pub descriptors: (u8, u8),
    /// Whether its body is a ring word: a ring's number and whether a descriptor comes with it.
    pub ring_word: bool,
}

/// The rule for a request.
///
/// Everything that is not implemented is unknown, whether or not the protocol has a name for it.
//= spec/vhost-user.md#VHU-3
#[must_use]
pub const fn rule(request: u32) -> Rule {
    let mut arm = Arm::Known;
    let (least, most, descriptors) = match request {
        // GET_FEATURES, SET_OWNER, RESET_OWNER, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM,
        // GET_MAX_MEM_SLOTS
        1 | 3 | 4 | 15 | 17 | 36 => (0, 0, (0, 0)),
        // SET_FEATURES, SET_PROTOCOL_FEATURES; SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE
        2 | 16 | 8 | 10 | 11 => (8, 8, (0, 0)),
        // SET_VRING_ENABLE: a dispatcher wants features first, and tells nobody
        18 => {
            arm = Arm::Own;
            (8, 8, (0, 0))
        }
        // SET_MEM_TABLE: a count, and for each region four numbers and a descriptor
        5 => (8 + 32, 8 + 32 * DESCRIPTORS_MAX as u32, (1, DESCRIPTORS_MAX)),
        // SET_VRING_ADDR
        9 => (40, 40, (0, 0)),
        // SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR
        12..=14 => (8, 8, (0, 1)),
        // GET_CONFIG, SET_CONFIG: offset, size and flags, then as many bytes as they say
        24 | 25 => (12 + 1, BODY_BYTES_MAX, (0, 0)),
        // SET_BACKEND_REQ_FD: a dispatcher keeps the socket to itself, and waits on it
        21 => {
            arm = Arm::Own;
            (0, 0, (1, 1))
        }
        // SET_LOG_BASE
        6 => (16, 16, (1, 1)),
        // SET_LOG_FD: some send a number along; a dispatcher closes the descriptor and refuses
        7 => {
            arm = Arm::Own;
            (0, 8, (1, 1))
        }
        // GET_INFLIGHT_FD: the answer has bytes that a dispatcher might leave undefined
        31 => {
            arm = Arm::Own;
            (24, 24, (0, 0))
        }
        // SET_INFLIGHT_FD
        32 => (24, 24, (1, 1)),
        // ADD_MEM_REG
        37 => (40, 40, (1, 1)),
        // REM_MEM_REG: old front ends send a descriptor, which is closed
        38 => (40, 40, (0, 1)),
        _ => {
            let descriptors = (0, DESCRIPTORS_MAX);
            return Rule {
                arm: Arm::Unknown,
                body: (0, BODY_BYTES_MAX),
                descriptors,
                ring_word: false,
            };
        }
    };
    Rule { arm, body: (least, most), descriptors, ring_word: matches!(request, 12..=14) }
}

/// What can be seen on a socket without taking anything from it.
///
/// To be looked at in the order of the fields: what is seen later never contradicts what was
/// seen before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Facts {
    /// Room for the largest answer.
    pub writable: bool,
    /// The front end sends nothing more.
    pub eof: bool,
    /// Bytes that wait.
    pub queued: usize,
    /// The first of them, as far as they come in one look.
    pub header: [u8; HEADER_BYTES],
    /// How many of the header's bytes came.
    pub peeked: usize,
    /// Descriptors that came with them.
    pub descriptors: usize,
    /// There were more descriptors than there was room to look at.
    pub truncated: bool,
    /// The first eight bytes of the body, when they came in one look with the header.
    pub word: Option<u64>,
}

/// Why bytes cannot be the beginning of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum GateFault {
    /// The stream ends inside a message.
    Cut,
    /// Descriptors came with a piece of a header.
    SplitHeader,
    /// Another version, an unknown flag, or an answer where a request has to be.
    Flags,
    /// The body is too long or too short for the request.
    Size,
    /// Too many descriptors for the request, or too few.
    Descriptors,
    /// A ring word with unknown bits, or one that does not agree with the descriptors.
    RingWord,
}

/// What is to be done with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Decision {
    /// Nothing has come.
    Idle,
    /// A piece of a message has come.
    Wait,
    /// A message has come, and its answer has no room yet.
    WaitWrite,
    /// No message can begin like this: the connection has to be closed.
    Bad(GateFault),
    /// The front end is gone.
    Eof,
    /// A whole message is there.
    Whole(Arm, Header),
}

/// Decides from what was seen.
//= spec/vhost-user.md#VHU-1
//= spec/vhost-user.md#VHU-2
#[must_use]
pub fn judge(facts: &Facts) -> Decision {
    let wait = if facts.eof { Decision::Bad(GateFault::Cut) } else { Decision::Wait };
    if facts.queued == 0 {
        return if facts.eof { Decision::Eof } else { Decision::Idle };
    }
    if facts.peeked < HEADER_BYTES {
        // A look ends at bytes that carry descriptors; what waits behind them is never seen.
        let split = facts.queued >= HEADER_BYTES;
        return if split { Decision::Bad(GateFault::SplitHeader) } else { wait };
    }
    let header = Header::from_bytes(facts.header);
    let rule = rule(header.request);
    if let Err(fault) = check(facts, header, &rule) {
        return Decision::Bad(fault);
    }
    if facts.queued < HEADER_BYTES + header.size as usize {
        return wait;
    }
    if !facts.writable {
        return Decision::WaitWrite;
    }
    Decision::Whole(rule.arm, header)
}

fn check(facts: &Facts, header: Header, rule: &Rule) -> Result<(), GateFault> {
    let flags = header.flags;
    if flags & VERSION_MASK != VERSION || flags & REPLY != 0 || flags & !FLAGS_KNOWN != 0 {
        return Err(GateFault::Flags);
    }
    if !(rule.body.0..=rule.body.1).contains(&header.size) {
        return Err(GateFault::Size);
    }
    // A look goes on behind the bytes it returns until it meets descriptors, so where more than
    // this message waits they may be a later one's. The count is a bound then; taking the
    // message will tell. More than any message may have is wrong wherever they belong.
    let alone = facts.queued <= HEADER_BYTES + header.size as usize;
    let agrees = |fewest: u8, most: u8| {
        facts.descriptors >= usize::from(fewest)
            && (facts.descriptors <= usize::from(most) || !alone)
    };
    let too_many = facts.truncated || facts.descriptors > usize::from(DESCRIPTORS_MAX);
    if too_many || !agrees(rule.descriptors.0, rule.descriptors.1) {
        return Err(GateFault::Descriptors);
    }
    //= spec/vhost-user.md#VHU-4
    if let Some(word) = facts.word.filter(|_| rule.ring_word) {
        let descriptors = u8::from(word & NO_DESCRIPTOR == 0);
        if word & !(RING_BITS | NO_DESCRIPTOR) != 0 || !agrees(descriptors, descriptors) {
            return Err(GateFault::RingWord);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
