//! One shard, its guests and its store, in virtual time: everything follows from a seed.
//!
//! A run has two phases. In the first anything may go wrong that the seed has drawn, and what
//! must never happen is watched for. In the second nothing goes wrong any more, and everything
//! has to come to an end: requests, stops, front ends, mappings.

mod turn;
mod ops;
mod visit;
mod control;
mod vandal;
mod kill;
mod finish;

use std::collections::BTreeMap;

use sluice_core::device::{DeviceId, QueueId};
use sluice_core::op::Reply;
use sluice_core::placement::{Epoch, Update};
use sluice_core::shard::{Input, Shard};

use crate::arena::Arena;
use crate::bus::memory::WatchedMemory;
use crate::bus::parts::ChainName;
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::durable::Durable;
use crate::front::Front;
use crate::guest::Guest;
use crate::history::{Flush, History, Initial, Read, Write};
use crate::log::{Log, Violation, Who};
use crate::options::Options;
use crate::prng::Prng;
use kill::populate;
use ops::{Answer, Flight};

/// What is planned. The order of the variants has no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The shard's thread runs.
    Turn,
    /// A guest thinks of something to ask for.
    Think(u32),
    /// A driver looks at its queue: it was notified, or it polls.
    Look(u32, u16),
    /// A kick reaches the shard.
    Kick(u32, u16),
    /// An operation takes its payload from the guest, has its effect, or is answered.
    Op(u64),
    /// A front end goes on.
    Front(u32),
    /// A capture is decided.
    Capture(u32, u32),
    /// A placement group moves.
    Move,
    /// The daemon is killed.
    Kill,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Anything may go wrong.
    Faults,
    /// Nothing goes wrong any more, and nobody asks for anything more.
    Healing,
    /// All requests have come back; the front ends leave.
    Leaving,
}

/// What the history knows of a request.
#[derive(Clone, Debug)]
enum Meant {
    Read(Read),
    Writes(Vec<Write>),
    /// And when it was sent.
    Flush(Flush, u64),
    Nothing,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The hash of its log.
    pub hash: u64,
    /// Events that happened.
    pub events: u64,
    /// Requests that came back to legal guests.
    pub requests: u64,
    /// Operations that were sent.
    pub ops: u64,
    /// What went wrong.
    pub violations: Vec<Violation>,
}

/// Events after which a run has gone astray.
const EVENTS_MAX: u64 = 400_000;

/// Runs one seed; prints its log when `show` is set.
#[must_use]
pub fn run(seed: u64, show: bool) -> Outcome {
    let mut prng = Prng::new(seed);
    let options = Options::draw(&mut prng);
    // One for each daemon.
    let mut arenas: Vec<Arena> =
        (0..=options.kills).map(|_| Arena::new(options.capacity)).collect();
    let mut log = Log::new(show);
    log.line(0, None, "seed", format_args!("{seed}"));
    log.line(0, None, "options", format_args!("{options:?}"));
    World::new(prng, options, arenas.iter_mut(), log).run()
}

struct World<'s> {
    shard: Shard<'s>,
    /// For the next daemons.
    arenas: core::slice::IterMut<'s, Arena>,
    /// Daemons that were killed.
    kills: u64,
    mem: WatchedMemory,
    cluster: Cluster,
    guests: Vec<Guest>,
    fronts: Vec<Front>,
    serials: Vec<[u8; 20]>,
    histories: Vec<History>,
    durable: Durable,
    options: Options,
    clock: Clock<Event>,
    prng: Prng,
    log: Log,
    /// What requests mean to the history, until they come back.
    meant: BTreeMap<ChainName, Meant>,
    /// Writes of front ends that are gone, which may still have their effect.
    ghosts: BTreeMap<u32, Vec<Write>>,
    /// Operations under way, by the order in which they were sent.
    flights: BTreeMap<u64, Flight>,
    ops_sent: u64,
    /// What the shard will hear of at its next turn.
    kicks: Vec<QueueId>,
    answers: Vec<Answer>,
    /// Replies that will come a second time.
    echoes: Vec<Reply>,
    /// Whether a turn is planned.
    awake: bool,
    /// Whether inputs came since operations were last polled.
    stirred: bool,
    captured: Vec<bool>,
    /// How often each image was asked for or given up: what is decided for an older question is
    /// no answer to a newer one.
    questions: Vec<u32>,
    poisoned: Vec<bool>,
    /// Which guests' queues will be looked at without being notified.
    looking: BTreeMap<(u32, u16), bool>,
    epoch: u64,
    phase: Phase,
    events: u64,
    requests: u64,
}

impl<'s> World<'s> {
    fn new(
        mut prng: Prng,
        options: Options,
        mut arenas: core::slice::IterMut<'s, Arena>,
        log: Log,
    ) -> Self {
        let mem = WatchedMemory::new(prng.fork(), options.lazy);
        let cluster = Cluster::new(prng.fork(), &options.images, options.pool, options.errors);
        let (mut guests, mut fronts, mut serials) = (Vec::new(), Vec::new(), Vec::new());
        for &(build, _) in &options.guests {
            let guest = Guest::new(&mem, prng.fork(), build);
            let mut serial = [0; 20];
            serial.iter_mut().for_each(|byte| *byte = u8::try_from(prng.below(256)).unwrap_or(0));
            let (inflight, leaves) = (options.inflight, options.leaves);
            fronts.push(Front::new(&build, guest.chunks.len(), inflight, leaves));
            guests.push(guest);
            serials.push(serial);
        }
        let poisoned = vec![false; options.images.len()];
        let arena = arenas.next().expect("one for the first daemon");
        let shard = populate(arena, &options, &serials, &poisoned);
        let history =
            |image: u64| History::new(image + 1, Initial::Zero).with_power_losses().with_restarts();
        let mut clock = Clock::new();
        clock.plan(0, Event::Turn);
        Self {
            shard,
            arenas,
            kills: 0,
            mem,
            cluster,
            guests,
            fronts,
            serials,
            histories: (0..options.images.len() as u64).map(history).collect(),
            durable: Durable::default(),
            clock,
            log,
            meant: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            flights: BTreeMap::new(),
            ops_sent: 0,
            kicks: Vec::new(),
            answers: Vec::new(),
            echoes: Vec::new(),
            awake: true,
            stirred: false,
            captured: vec![false; options.images.len()],
            questions: vec![0; options.images.len()],
            poisoned,
            looking: BTreeMap::new(),
            epoch: 0,
            phase: Phase::Faults,
            events: 0,
            requests: 0,
            options,
            prng,
        }
    }

    fn run(mut self) -> Outcome {
        self.begin();
        while self.log.violations.is_empty() {
            match self.phase {
                Phase::Faults if self.clock.now().0 >= self.options.phase => self.heal(),
                Phase::Healing if self.is_at_rest() => self.part(),
                Phase::Leaving if self.is_deserted() => {
                    self.check_end();
                    break;
                }
                _ => {}
            }
            let Some(event) = self.clock.advance() else {
                self.report_stuck("I28", "nothing is left to happen");
                break;
            };
            self.events += 1;
            if self.events > EVENTS_MAX {
                self.report_stuck("I30", "there is no end");
                break;
            }
            self.mem.inner().drift();
            self.happen(event);
            if self.is_dead() {
                self.bury();
            }
            self.collect();
        }
        self.collect();
        Outcome {
            hash: self.log.hash(),
            events: self.events,
            requests: self.requests,
            ops: self.ops_sent,
            violations: self.log.violations,
        }
    }

    /// The map of the cluster, and the first thoughts of everybody.
    fn begin(&mut self) {
        let pool = Update::Pool(self.options.pool);
        self.update(pool);
        for pg in 1..=self.options.pool.pg_count {
            if self.prng.chance(800) {
                let osd = self.draw_osd();
                self.move_group(pg, osd);
            }
        }
        self.plan_kill();
        if self.options.moves > 0 {
            self.clock.plan(10_000, Event::Move);
        }
        for id in 0..self.options.guests.len() {
            let id = u32::try_from(id).unwrap_or(u32::MAX);
            let delay = self.prng.skewed(20_000);
            self.clock.plan(delay, Event::Front(id));
            self.clock.plan(delay, Event::Think(id));
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Turn => self.turn(),
            Event::Think(guest) => self.think(guest),
            Event::Look(guest, queue) => {
                self.looking.remove(&(guest, queue));
                self.look(guest, queue);
            }
            Event::Kick(guest, queue) => {
                if self.options.pace != crate::options::Pace::Spin {
                    self.kicks.push(QueueId { device: DeviceId(guest), index: queue });
                    self.wake();
                }
            }
            Event::Op(number) => self.advance_op(number),
            Event::Front(guest) => self.go_on(guest),
            Event::Capture(image, asked) => self.decide_capture(image, asked),
            Event::Move => self.move_any_group(),
            Event::Kill => self.kill(),
        }
    }

    /// Hands an input to the shard, which will have to be driven for it.
    fn input(&mut self, input: Input) {
        let now = self.clock.now();
        if let Err(refused) = self.shard.handle(now, &self.mem, input) {
            self.fault("I12", format!("an update is refused: {refused:?}"));
        }
        self.stirred = true;
        self.wake();
    }

    fn update(&mut self, update: Update) {
        self.epoch += 1;
        let cluster = sluice_core::placement::ClusterId(0);
        let epoch = self.epoch;
        self.line(None, "update", format_args!("{epoch} {update:?}"));
        self.input(Input::Cluster(cluster, Epoch(self.epoch), update));
    }

    fn wake(&mut self) {
        if !self.awake {
            self.awake = true;
            let delay = self.prng.skewed(2000);
            self.clock.plan(delay, Event::Turn);
        }
    }

    /// Whether nothing goes wrong any more.
    fn is_healing(&self) -> bool {
        self.phase != Phase::Faults
    }

    fn is_open(&self, guest: u32) -> bool {
        self.options.guests[guest as usize].0.open
    }

    fn image_of(&self, guest: u32) -> usize {
        self.options.guests[guest as usize].1 as usize
    }

    fn line(&mut self, who: Option<Who>, event: &str, details: core::fmt::Arguments<'_>) {
        self.log.line(self.clock.now().0, who, event, details);
    }

    fn fault(&mut self, invariant: &'static str, what: String) {
        self.log.violation(self.clock.now().0, Violation { invariant, what });
    }

    /// Takes over what the watchers of the memory have found.
    fn collect(&mut self) {
        for violation in self.mem.inner().bus.take_found() {
            self.log.violation(self.clock.now().0, violation);
        }
    }
}

/// The name of a queue in the log.
const fn queue(guest: u32, queue: u16) -> Option<Who> {
    Some(Who { guest, queue: Some(queue) })
}

/// The name of a guest in the log.
const fn guest(guest: u32) -> Option<Who> {
    Some(Who { guest, queue: None })
}
