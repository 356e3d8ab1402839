//! Control messages in every order, against a second opinion of what each has to lead to.
//!
//! The table in `spec/orders.md` is generated from that opinion; the device is held to it in all
//! orders of a few messages and in long random ones.

use std::collections::BTreeSet;
use std::fmt::Write;

use sluice_core::blk::BlkFeatures;
use sluice_core::device::{ControlEvent as E, ControlFault as F, ControlReply, RegionList};
use sluice_core::memory::MapFault;
use sluice_core::shard::Input;
use sluice_sim::prng::Prng;
use sluice_sim::rig::{RING, Rig, Setup, arena, memory};

/// How far a ring has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Nothing,
    Sized,
    Addressed,
    Running,
}

/// Everything that later answers depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    owner: bool,
    memory: bool,
    ring: Stage,
    features: u64,
    enabled: bool,
    /// Whether the ring is fetched from.
    served: bool,
}

const NEW: State = State {
    owner: false,
    memory: false,
    ring: Stage::Nothing,
    features: 0,
    enabled: false,
    served: false,
};

const PLAIN: u64 = BlkFeatures::VERSION_1.bits();
const PROTOCOL: u64 = PLAIN | BlkFeatures::PROTOCOL_FEATURES.bits();

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Owner,
    Features(u64),
    Memory,
    NoMemory,
    Size,
    Base,
    Addresses,
    Kick,
    Call,
    Enable(bool),
    Stop,
    /// The connection ends, and another begins.
    Leave,
}

const MESSAGES: [Message; 14] = [
    Message::Owner,
    Message::Features(PLAIN),
    Message::Features(PROTOCOL),
    Message::Memory,
    Message::NoMemory,
    Message::Size,
    Message::Base,
    Message::Addresses,
    Message::Kick,
    Message::Call,
    Message::Enable(true),
    Message::Enable(false),
    Message::Stop,
    Message::Leave,
];

impl Message {
    /// Its column; both features and both ways to enable share one.
    const fn name(self) -> &'static str {
        match self {
            Self::Owner => "SET_OWNER",
            Self::Features(_) => "SET_FEATURES, others",
            Self::Memory => "SET_MEM_TABLE",
            Self::NoMemory => "REM_MEM_REG",
            Self::Size => "SET_VRING_NUM",
            Self::Base => "SET_VRING_BASE",
            Self::Addresses => "SET_VRING_ADDR",
            Self::Kick => "SET_VRING_KICK",
            Self::Call => "SET_VRING_CALL",
            Self::Enable(_) => "SET_VRING_ENABLE",
            Self::Stop => "GET_VRING_BASE",
            Self::Leave => "end",
        }
    }
}

impl State {
    /// What a message is answered with, and what is so afterwards.
    fn after(self, message: Message) -> (Result<(), F>, Self) {
        use Message as M;
        let mut next = self;
        let runs = self.ring == Stage::Running;
        let refused = |fault| (Err(fault), self);
        match message {
            M::Leave => return (Ok(()), NEW),
            M::Owner => {
                next.owner = true;
                next.memory &= runs;
            }
            M::Features(bits) if runs && bits != self.features => return refused(F::Running),
            M::Features(bits) => next.features = bits,
            _ if !self.owner => return refused(F::Owner),
            M::Memory => next.memory = true,
            M::NoMemory if !self.memory => return refused(F::Memory(MapFault::Unknown)),
            M::NoMemory if runs => return refused(F::RegionInUse),
            M::NoMemory => next.memory = false,
            M::Size | M::Base if runs => {}
            M::Size => next.ring = Stage::Sized,
            M::Base | M::Call => {}
            M::Addresses | M::Kick if self.ring == Stage::Nothing => return refused(F::Order),
            M::Kick if self.ring == Stage::Sized => return refused(F::Order),
            M::Addresses | M::Kick if !self.memory => return refused(F::RingNotShared),
            M::Addresses => next.ring = self.ring.max(Stage::Addressed),
            M::Kick if runs => {}
            M::Kick => {
                next.ring = Stage::Running;
                next.served = self.enabled || self.features != PROTOCOL;
            }
            M::Enable(enable) => {
                next.enabled = enable;
                next.served = enable && runs;
            }
            M::Stop => {
                next.ring = if runs { Stage::Sized } else { self.ring };
                next.served = false;
            }
        }
        (Ok(()), next)
    }
}

fn event(rig: &Rig<'_>, message: Message) -> E {
    let index = 0;
    let region = Setup::default().regions[2];
    assert_eq!(region.id, RING);
    match message {
        Message::Owner => E::SetOwner,
        Message::Features(bits) => E::SetFeatures(bits),
        Message::Memory => E::SetMemTable(RegionList::from_slice(&[region]).unwrap()),
        Message::NoMemory => {
            E::RemoveMemRegion { guest: region.guest, user: region.user, size: region.size }
        }
        Message::Size => E::SetVringNum { index, size: rig.size().into() },
        Message::Base => E::SetVringBase { index, base: 0 },
        Message::Addresses => E::SetVringAddr { index, addresses: rig.addresses() },
        Message::Kick => E::SetVringKick { index },
        Message::Call => E::SetVringCall { index },
        Message::Enable(enable) => E::SetVringEnable { index, enable },
        Message::Stop => E::GetVringBase { index },
        Message::Leave => unreachable!("no message"),
    }
}

/// Says a message to the device and holds it to the opinion.
fn say(rig: &mut Rig<'_>, state: State, message: Message, before: &[Message]) -> State {
    let (due, next) = state.after(message);
    if message == Message::Leave {
        rig.input(Input::FrontEndGone(rig.device));
    } else {
        let answer = rig.control(event(rig, message));
        let right = match (due, answer) {
            (Ok(()), Some(ControlReply::VringBase { index: 0, base: 0 })) => {
                message == Message::Stop
            }
            (Ok(()), Some(ControlReply::Done)) => message != Message::Stop,
            (Err(fault), Some(ControlReply::Refused(found))) => fault == found,
            _ => false,
        };
        assert!(right, "{message:?} after {before:?}: {answer:?}, not {due:?}");
    }
    rig.effects.clear();
    assert_eq!(rig.shard.has_queues(), next.served, "{message:?} after {before:?}");
    assert_eq!(rig.broken, None);
    next
}

fn say_all(rig: &mut Rig<'_>, messages: &[Message]) {
    let mut state = say(rig, NEW, Message::Leave, &[]);
    for (at, &message) in messages.iter().enumerate() {
        state = say(rig, state, message, &messages[..at]);
    }
}

//= spec/lifecycle.md#LIF-1
//= spec/lifecycle.md#LIF-3
//= spec/lifecycle.md#LIF-10
#[test]
fn b16_i19_messages_in_every_order() {
    const LENGTH: u32 = 4;
    let (mut arena, mem) = (arena(4), memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup::default());
    for number in 0..MESSAGES.len().pow(LENGTH) {
        let digit = |place| MESSAGES[number / MESSAGES.len().pow(place) % MESSAGES.len()];
        // Most of what can happen does so behind an owner with memory.
        let first = [Message::Owner, Message::Memory, Message::Size];
        let rest: Vec<_> = (0..LENGTH).map(digit).collect();
        say_all(&mut rig, &rest);
        say_all(&mut rig, &[&first[..], &rest].concat());
    }
}

//= spec/lifecycle.md#LIF-1
#[test]
fn b16_i19_long_lives_of_messages() {
    let (mut arena, mem) = (arena(4), memory());
    let mut rig = Rig::new(&mut arena, &mem, Setup::default());
    let mut prng = Prng::new(16);
    let mut state = say(&mut rig, NEW, Message::Leave, &[]);
    let mut runs = 0;
    for _ in 0..200_000 {
        let message = MESSAGES[prng.index(MESSAGES.len())];
        let likely = message != Message::Leave || prng.chance(200);
        if likely {
            state = say(&mut rig, state, message, &[]);
            runs += u32::from(state.served);
        }
    }
    assert!(runs > 1000, "some of them lead somewhere");
}

/// The rows that can be reached, and what each message is answered with there.
fn table() -> String {
    let columns: Vec<Message> = MESSAGES
        .into_iter()
        .filter(|m| {
            !matches!(m, Message::Features(PLAIN) | Message::Enable(false) | Message::Leave)
        })
        .collect();
    let mut known = BTreeSet::from([NEW]);
    let mut fresh = vec![NEW];
    while let Some(state) = fresh.pop() {
        let next = MESSAGES.map(|message| state.after(message).1);
        fresh.extend(next.into_iter().filter(|&state| known.insert(state)));
    }
    let mut text = String::from("| owner | memory | ring |");
    for column in &columns {
        write!(text, " {} |", column.name()).unwrap();
    }
    text += "\n| --- | --- | --- |";
    text.push_str(&" --- |".repeat(columns.len()));
    let rows: BTreeSet<_> = known.iter().map(|s| (s.owner, s.memory, s.ring)).collect();
    let yes = |flag| if flag { "yes" } else { "no" };
    for (owner, memory, ring) in rows {
        write!(text, "\n| {} | {} | {ring:?} |", yes(owner), yes(memory)).unwrap();
        for &column in &columns {
            // What is served or negotiated makes no difference to any answer but that features
            // stay what they are while a ring runs.
            let state = State { owner, memory, ring, features: PLAIN, ..NEW };
            match state.after(column).0 {
                Ok(()) => text += " |",
                Err(fault) => {
                    let closes = if fault.closes() { ", closes" } else { "" };
                    write!(text, " {fault:?}{closes} |").unwrap();
                }
            }
        }
    }
    text.push('\n');
    text
}

#[test]
fn the_table_of_orders_is_the_one_that_is_written_down() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../spec/orders.md");
    let written = std::fs::read_to_string(path).unwrap();
    let table = table();
    assert!(written.ends_with(&table), "{path} should end with\n{table}");
}
