//! A front end: the messages it sends for its guest, in the order in which QEMU would.

use std::collections::VecDeque;

use sluice_core::blk::BlkFeatures;
use sluice_core::memory::RegionId;

use crate::guest::Build;
use crate::prng::Prng;

/// One thing to tell the device, or to do between two messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the messages")]
pub enum Message {
    Owner,
    AskFeatures,
    Features,
    AskProtocol,
    Protocol,
    AskConfig,
    AskQueues,
    Inflight,
    Table,
    AddRegion(usize),
    Num(u16),
    Base(u16),
    Addr(u16),
    Kick(u16),
    Call(u16),
    Enable(u16, bool),
    Writeback(bool),
    GetBase(u16),
    /// The driver begins anew.
    Reset(u16),
    /// Hang up.
    Vanish,
}

/// Where a front end stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not connected.
    Away,
    /// Connected.
    Here,
    /// Gone; the device has not finished with it.
    Leaving,
}

/// The front end of one guest.
#[derive(Debug)]
pub struct Front {
    /// Where it stands.
    pub state: State,
    /// What it will say.
    pub script: VecDeque<Message>,
    /// What it waits for an answer to.
    pub awaited: Option<Message>,
    /// What the driver wants.
    pub features: BlkFeatures,
    /// Whether the device has agreed, so that the driver may begin.
    pub negotiated: bool,
    /// Mappings that were made for the message that waits for its answer.
    pub offered: Vec<RegionId>,
    /// Where each queue goes on, and whether it runs.
    pub bases: Vec<u32>,
    /// Which queues run.
    pub running: Vec<bool>,
    /// Which queues are enabled.
    pub enabled: Vec<bool>,
    /// Whether completed writes may be volatile, as far as its driver has chosen.
    pub writeback: bool,
    /// Counts what the driver may have chosen.
    pub era: u64,
    /// Whether queues are tracked.
    pub inflight: bool,
    /// Whether a stop may leave requests in the inflight region.
    pub leaves: bool,
    /// Whether the driver wants packed rings.
    pub packed: bool,
    /// The chunk of its inflight region, and whether the device has it.
    pub area: Option<usize>,
    /// See [`area`](Self::area).
    pub handed_over: bool,
    /// Whether it connected again without the region that it had.
    pub lost_area: bool,
    /// Whether a queue is broken, so that its guest has to be reset.
    pub begins_anew: bool,
    queues: u16,
    chunks: usize,
}

impl Front {
    /// A front end that is away.
    #[must_use]
    pub fn new(build: &Build, chunks: usize, inflight: bool, leaves: bool) -> Self {
        let queues = build.queues;
        let inflight = inflight && !build.packed;
        Self {
            state: State::Away,
            script: VecDeque::new(),
            awaited: None,
            features: BlkFeatures::empty(),
            negotiated: false,
            offered: Vec::new(),
            bases: vec![0; usize::from(queues)],
            running: vec![false; usize::from(queues)],
            enabled: vec![false; usize::from(queues)],
            writeback: true,
            era: 0,
            inflight,
            leaves: inflight && leaves,
            packed: build.packed,
            area: None,
            handed_over: false,
            lost_area: false,
            begins_anew: false,
            queues,
            chunks,
        }
    }

    /// Whether it has said all it wanted and heard all answers.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.script.is_empty() && self.awaited.is_none() && self.state != State::Leaving
    }

    /// Whether all its queues run.
    #[must_use]
    pub fn is_up(&self) -> bool {
        let settled = self.is_quiet() && !self.begins_anew;
        self.state == State::Here && settled && self.running.iter().all(|&runs| runs)
    }

    /// Whether the protocol features were negotiated, and with them enabling.
    #[must_use]
    pub const fn has_protocol(&self) -> bool {
        self.features.contains(BlkFeatures::PROTOCOL_FEATURES)
    }

    /// Chooses among what is offered.
    pub fn choose_features(&mut self, prng: &mut Prng, offered: BlkFeatures) {
        let mut chosen = offered;
        for optional in [
            BlkFeatures::EVENT_IDX,
            BlkFeatures::INDIRECT_DESC,
            BlkFeatures::DISCARD,
            BlkFeatures::WRITE_ZEROES,
            BlkFeatures::FLUSH,
            BlkFeatures::CONFIG_WCE,
        ] {
            if prng.chance(350) {
                chosen.remove(optional);
            }
        }
        // Whether queues have to be enabled is settled for a connection.
        let protocol = match self.state {
            State::Away => prng.chance(650),
            State::Here | State::Leaving => self.has_protocol(),
        };
        chosen.set(BlkFeatures::PROTOCOL_FEATURES, protocol);
        chosen.set(BlkFeatures::RING_PACKED, self.packed);
        self.features = chosen;
        self.era += 1;
    }

    /// Takes in what the driver has chosen for completed writes.
    pub const fn choose_writeback(&mut self, writeback: bool) {
        self.writeback = writeback;
        self.era += 1;
    }

    /// Whether completed writes are stable.
    #[must_use]
    pub const fn writes_through(&self) -> bool {
        let chooses = self.features.contains(BlkFeatures::CONFIG_WCE);
        !self.features.contains(BlkFeatures::FLUSH) || chooses && !self.writeback
    }

    /// Where an empty ring begins.
    #[must_use]
    pub const fn first_base(&self) -> u32 {
        if self.packed { 0x8000_8000 } else { 0 }
    }

    /// Connects and starts everything.
    pub fn connect(&mut self, prng: &mut Prng) {
        use Message as M;
        self.state = State::Here;
        self.choose_writeback(true);
        let base = self.first_base();
        self.bases.fill(base);
        self.running.fill(false);
        (self.area, self.handed_over) = (None, false);
        (self.lost_area, self.begins_anew) = (false, false);
        self.script.extend([M::AskFeatures, M::Owner, M::AskProtocol]);
        if self.has_protocol() {
            self.script.push_back(M::Protocol);
        }
        self.script.extend([M::AskQueues, M::AskConfig, M::Features]);
        self.share_memory(prng);
        self.start_all(prng);
    }

    fn share_memory(&mut self, prng: &mut Prng) {
        if prng.chance(500) {
            self.script.push_back(Message::Table);
        } else {
            self.script.extend((0..self.chunks).map(Message::AddRegion));
        }
    }

    /// Whether its queues can go on where they are after the device was killed.
    #[must_use]
    pub fn may_resume(&self) -> bool {
        let resets = self.script.iter().any(|message| matches!(message, Message::Reset(_)));
        // Where a packed ring was stopped only the answer says, and what was tracked is forgotten.
        let lost = self.packed && matches!(self.awaited, Some(Message::GetBase(_)));
        self.handed_over && self.negotiated && !self.begins_anew && !resets && !lost
    }

    /// Connects again for a guest that has not noticed, with its region or without.
    pub fn resume(&mut self, prng: &mut Prng, keeps: bool) {
        use Message as M;
        self.script.extend([M::Owner, M::Protocol, M::Features]);
        self.handed_over = false;
        self.lost_area = !keeps;
        if keeps {
            self.script.push_back(M::Inflight);
        } else {
            self.area = None;
        }
        self.share_memory(prng);
        self.start_queues(prng);
    }

    /// Stops a broken device and begins anew, once there is nothing else to say.
    pub fn begin_anew(&mut self, prng: &mut Prng) {
        let ready = self.state == State::Here && self.script.is_empty();
        if ready && core::mem::take(&mut self.begins_anew) {
            self.lost_area = false;
            self.reset_all(prng);
        }
    }

    /// Stops all queues, and starts them for a guest that has been reset.
    fn reset_all(&mut self, prng: &mut Prng) {
        self.script.extend((0..self.queues).map(Message::GetBase));
        self.script.extend((0..self.queues).map(Message::Reset));
        self.script.push_back(Message::Features);
        self.start_all(prng);
    }

    /// Starts all queues where they were stopped.
    pub fn start_all(&mut self, prng: &mut Prng) {
        if self.inflight && self.has_protocol() && !self.lost_area {
            self.script.push_back(Message::Inflight);
        }
        self.start_queues(prng);
    }

    fn start_queues(&mut self, prng: &mut Prng) {
        use Message as M;
        let (first, enable_late) = (prng.below(self.queues.into()), prng.chance(500));
        for queue in 0..self.queues {
            let queue = (queue + u16::try_from(first).unwrap_or(0)) % self.queues;
            self.script.extend([M::Num(queue), M::Base(queue), M::Addr(queue), M::Kick(queue)]);
            self.script.push_back(M::Call(queue));
            if self.has_protocol() && !enable_late {
                self.script.push_back(M::Enable(queue, true));
            }
        }
        if self.has_protocol() && enable_late {
            self.script.extend((0..self.queues).map(|queue| M::Enable(queue, true)));
        }
    }

    /// Does one of the things that front ends do to devices that run.
    pub fn disturb(&mut self, prng: &mut Prng, weights: &[u64; 7]) {
        use Message as M;
        let total: u64 = weights.iter().sum();
        if total == 0 {
            return;
        }
        let mut at = prng.below(total);
        let choice = weights.iter().position(|&weight| {
            let hit = at < weight;
            at = at.wrapping_sub(weight);
            hit
        });
        let queue = u16::try_from(prng.below(self.queues.into())).unwrap_or(0);
        match choice {
            Some(0) => self.script.push_back(M::Table),
            Some(1) => {
                self.script.extend((0..self.queues).rev().map(M::GetBase));
                if prng.chance(300) {
                    self.script.push_back(M::Table);
                }
                self.start_all(prng);
            }
            Some(2) => self.reset_all(prng),
            Some(3) if self.has_protocol() => {
                self.script.extend([M::Enable(queue, false), M::Enable(queue, true)]);
            }
            Some(4) => self.script.push_back(M::Call(queue)),
            Some(5) => self.script.push_back(M::Vanish),
            Some(6) if self.features.contains(BlkFeatures::CONFIG_WCE) => {
                self.script.push_back(M::Writeback(!self.writeback));
            }
            _ => {}
        }
    }

    /// Stops all queues, if it likes, and hangs up.
    pub fn leave(&mut self, prng: &mut Prng) {
        if prng.chance(500) {
            self.script.extend((0..self.queues).map(Message::GetBase));
        }
        self.script.push_back(Message::Vanish);
    }
}
