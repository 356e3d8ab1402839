//! A storm of control messages with descriptors of every kind over one disk of a real daemon, while
//! another disk of it goes on.
//!
//! What is looked for: a death, a thread that is stuck, mappings, descriptors or log lines that
//! grow. The neighbour tells whether a thread is stuck: it makes requests and says messages all the
//! time, and what holds a thread up here does so for longer than it is waited for.
//!
//! `STORM_MESSAGES` and `STORM_SEEDS` (`1..4`) choose how much; `run` beside this file chooses a lot.
//! `STORM_HELD` is how many descriptors may hold somebody up at a time; with none, which is what the
//! tests do so far, huge pages stay away too.

mod fuse;
mod messages;
mod neighbour;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "the daemon here is a process of its own")]
mod support;
mod victim;
mod zoo;

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use sluice_sim::prng::Prng;

use messages::{setup, wild};
use neighbour::Neighbour;
use support::client::Client;
use victim::Victim;
use zoo::{Zoo, close_aside};

/// How long what has to come may take; a storm that gets there has found something.
const LIMIT: Duration = Duration::from_secs(60);

/// How long an answer is waited for that need not come.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of a message's header.
const HEADER: usize = 12;

/// Messages between two looks at the neighbour.
const STRETCH: u64 = 256;

fn number(variable: &str, default: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| default.to_owned())
}

//= spec/vhost-user.md#VHU-17
#[test]
fn a_storm_of_messages_costs_the_neighbour_nothing() {
    let messages: u64 = number("STORM_MESSAGES", "20000").parse().expect("a number");
    let seeds = number("STORM_SEEDS", "1..2");
    let (first, last) = seeds.split_once("..").expect("a range of seeds");
    let seeds = first.parse::<u64>().expect("a seed")..last.parse().expect("a seed");
    for seed in seeds {
        storm(seed, messages);
    }
}

fn storm(seed: u64, messages: u64) {
    let begun = Instant::now();
    let victim = Victim::start();
    let neighbour = Neighbour::start(victim.socket(1));
    let held: usize = number("STORM_HELD", "0").parse().expect("a number");
    let mut zoo = Zoo::new(held);
    // What the daemon holds once both disks have been used.
    drop(connect(&victim.socket(0)));
    neighbour.goes_on(&victim);
    let before = victim.held();
    let mut prng = Prng::new(seed);
    let mut sent = 0;
    while sent < messages {
        let stretch = STRETCH.min(messages - sent);
        attack(&victim.socket(0), &mut zoo, &mut prng, stretch);
        sent += stretch;
        zoo.take_back();
        neighbour.goes_on(&victim);
    }
    drop(zoo);
    victim.settles(before);
    neighbour.goes_on(&victim);
    victim.is_quiet(begun.elapsed());
    println!(
        "seed {seed}: {sent} messages in {:.0} s, the neighbour had {} answers and waited {} ms at most",
        begun.elapsed().as_secs_f64(),
        neighbour.answers(),
        neighbour.longest().as_millis(),
    );
}

fn connect(path: &Path) -> UnixStream {
    UnixStream::connect(path).expect("the daemon listens")
}

/// So many messages over as many connections as it takes.
fn attack(path: &Path, zoo: &mut Zoo, prng: &mut Prng, messages: u64) {
    let mut stream = None;
    for _ in 0..messages {
        let client = stream.get_or_insert_with(|| open(path, prng));
        let fds: Vec<_> =
            (0..messages::descriptors(prng)).map(|_| zoo.any(prng, &client.stream)).collect();
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let message = wild(prng, &borrowed);
        // Where the rest follows when our copies are gone, the daemon's are the last.
        let (head, rest) = message.split_at(if prng.chance(500) {
            HEADER.min(message.len())
        } else {
            message.len()
        });
        let mut said = say(client, head, &borrowed);
        close_aside(fds);
        said = said && (rest.is_empty() || say(client, rest, &[]));
        if !said || prng.chance(20) {
            stream.take().iter().for_each(finish);
        }
    }
    stream.iter().for_each(finish);
}

/// Says no more, and waits until the daemon has heard everything and closed.
fn finish(client: &Client) {
    if client.stream.shutdown(std::net::Shutdown::Write).is_err() {
        return;
    }
    client.stream.set_nonblocking(false).expect("a flag");
    client.stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut answers = [0; 4096];
    while (&client.stream).read(&mut answers).is_ok_and(|read| read > 0) {}
}

/// A connection; of most the ring runs.
fn open(path: &Path, prng: &mut Prng) -> Client {
    let client = Client::new(connect(path));
    client.stream.set_nonblocking(true).expect("a flag");
    if prng.chance(700) {
        for (message, fd) in setup() {
            let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
            if !say(&client, &message, &fds) {
                break;
            }
        }
    }
    client
}

/// Sends one message, whatever has become of the connection; `false` when there is none.
fn say(client: &Client, message: &[u8], fds: &[std::os::fd::BorrowedFd<'_>]) -> bool {
    let end = Instant::now() + Duration::from_millis(200);
    loop {
        // Answers make room.
        let mut answers = [0; 4096];
        while (&client.stream).read(&mut answers).is_ok_and(|read| read > 0) {}
        match client.try_bytes(message, fds) {
            Ok(()) => return true,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if Instant::now() > end {
                    return false;
                }
                std::thread::yield_now();
            }
            Err(_) => return false,
        }
    }
}
