//! Every moment of a daemon's life as its last one.

use sluice_sim::crash::{Explored, Plan, explore};

const PLAN: Plan = Plan {
    requests: 4,
    depth: 4,
    rounds: 1,
    packed: false,
    size: 4,
    index: 0,
    event_idx: false,
    adds_while_down: false,
    resets_while_down: false,
};

/// Requests of the largest worlds.
const REQUESTS_MAX: u16 = 4;

/// The same where the ring's indices pass 65,535 inside of the largest batches.
fn wrapping(plans: impl Iterator<Item = Plan>) -> impl Iterator<Item = Plan> {
    plans.map(|plan| Plan { index: u16::MAX - 1, ..plan })
}

/// The same in packed rings: one in which chains of one and of three entries fit together, and one
/// that is passed again and again.
fn packed(plans: impl Iterator<Item = Plan>) -> impl Iterator<Item = Plan> {
    let sizes = |plan| [8, 5].map(|size| Plan { packed: true, size, ..plan });
    plans.flat_map(sizes)
}

fn explore_all(plans: impl Iterator<Item = Plan>) {
    let mut all = Explored::default();
    for plan in plans {
        match explore(plan) {
            Ok(explored) => all += explored,
            Err(what) => panic!("{what}"),
        }
    }
    println!("{all:?}");
    assert!(all.ways > 0 && all.kills > 0 && all.kills_again > 0);
}

fn sizes() -> impl Iterator<Item = (u16, u16)> {
    (1..=REQUESTS_MAX).flat_map(|requests| (1..=requests).map(move |depth| (requests, depth)))
}

//= spec/inflight.md#INF-4
//= spec/inflight.md#INF-5
//= spec/recovery.md#REC-7
//= spec/recovery.md#REC-8
#[test]
fn f01_f02_f04_killed_at_every_moment_and_again() {
    explore_all(sizes().map(|(requests, depth)| Plan { requests, depth, ..PLAN }));
}

/// A batch, and what is left behind it, on both sides of the wrap.
//= spec/recovery.md#REC-2
//= spec/recovery.md#REC-5
//= spec/recovery.md#REC-7
#[test]
fn f01_f02_killed_at_every_moment_while_the_indices_wrap() {
    let all = sizes().filter(|&(requests, _)| requests <= 3);
    let plans = all.map(|(requests, depth)| Plan { requests, depth, ..PLAN });
    explore_all(wrapping(plans));
    let twice = [Plan { requests: 2, depth: 2, rounds: 2, event_idx: true, ..PLAN }];
    explore_all(wrapping(twice.into_iter()));
}

//= spec/inflight.md#INF-4
//= spec/inflight.md#INF-5
//= spec/recovery.md#REC-7
//= spec/recovery.md#REC-8
//= spec/inflight.md#INF-10
//= spec/inflight.md#INF-11
//= spec/recovery.md#REC-12
//= spec/recovery.md#REC-13
#[test]
fn f01_f02_f04_killed_at_every_moment_and_again_packed() {
    explore_all(packed(sizes().map(|(requests, depth)| Plan { requests, depth, ..PLAN })));
}

/// A queue that is stopped and started again has a fresh area and a ring in use.
//= spec/inflight.md#INF-6
//= spec/inflight.md#INF-7
#[test]
fn b97_killed_at_every_moment_of_a_second_start() {
    explore_all(sizes().filter(|&(requests, _)| requests <= 2).map(|(requests, depth)| Plan {
        requests,
        depth,
        rounds: 2,
        ..PLAN
    }));
}

//= spec/inflight.md#INF-6
//= spec/inflight.md#INF-7
#[test]
fn b97_killed_at_every_moment_of_a_second_start_packed() {
    explore_all(packed(
        sizes().filter(|&(requests, _)| requests <= 2).map(|(requests, depth)| Plan {
            requests,
            depth,
            rounds: 2,
            ..PLAN
        }),
    ));
}

/// The guest goes on asking, and waits for an event.
//= spec/recovery.md#REC-8
#[test]
fn f05_f06_more_is_asked_for_while_nobody_serves() {
    explore_all(sizes().filter(|&(requests, _)| requests <= 3).map(|(requests, depth)| Plan {
        requests,
        depth,
        event_idx: true,
        adds_while_down: true,
        ..PLAN
    }));
}

//= spec/recovery.md#REC-8
#[test]
fn f05_f06_more_is_asked_for_while_nobody_serves_packed() {
    explore_all(packed(sizes().filter(|&(requests, _)| requests <= 3).map(|(requests, depth)| {
        Plan { requests, depth, event_idx: true, adds_while_down: true, ..PLAN }
    })));
}

//= spec/recovery.md#REC-11
#[test]
fn f13_the_guest_is_reset_while_nobody_serves() {
    explore_all(sizes().filter(|&(requests, _)| requests <= 3).map(|(requests, depth)| Plan {
        requests,
        depth,
        resets_while_down: true,
        ..PLAN
    }));
}

//= spec/recovery.md#REC-11
#[test]
fn f13_the_guest_is_reset_while_nobody_serves_packed() {
    explore_all(packed(
        sizes().filter(|&(requests, _)| requests <= 3).map(|(requests, depth)| Plan {
            requests,
            depth,
            resets_while_down: true,
            ..PLAN
        }),
    ));
}
