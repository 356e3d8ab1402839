//! What a device that asks for more than its share costs the others: counted in turns and bytes.

use sluice_core::device::{ControlEvent, ControlReply};
use sluice_core::limits::{
    CLEARED_BYTES, FLIGHT_ALONE_BYTES, FLIGHT_BYTES, LINGER_TURNS, OP_COST, PART_BYTES_MAX,
    QUEUE_BATCH, SLICE_BYTES, TURN_CHAINS, TURN_COST,
};
use sluice_core::op::OpKind;
use sluice_core::shard::Idle;
use sluice_sim::crowd::{self, Crowd, Member, Turn, arena, cost, memory, turns_max};
use sluice_sim::driver::Kind;

const REQUESTS: usize = 2048;
const MIB: u32 = 1 << 20;

/// One queue that always has 40 requests.
const FLOOD: Member = Member { depth: 40, ..Member::LIGHT };

/// One whose writes wait in the store for ever.
const STUCK: Member =
    Member { kind: Kind::Write, bytes: MIB, queues: 8, in_turn: false, answers: false, ..FLOOD };

/// Runs a crowd for so many turns; the first two, in which images are captured, are left out.
fn turns(members: &[Member], requests: usize, count: usize) -> Vec<Turn> {
    let (mut arena, mem) = (arena(members, requests), memory(members));
    let mut crowd = Crowd::new(&mut arena, &mem, members);
    (0..2).for_each(|_| drop(crowd.turn(0)));
    (0..count).map(|_| crowd.turn(0)).collect()
}

fn ended(turns: &[Turn], member: usize) -> u32 {
    turns.iter().map(|turn| turn.ended[member]).sum()
}

/// What a turn's operations of one device cost.
fn spent(turn: &Turn, member: usize, as_: &Member) -> u64 {
    turn.ops_of(member).map(|op| cost(op, as_)).sum()
}

/// Every kind of flood, over many queues where that is possible.
fn floods() -> Vec<Member> {
    let many = Member { queues: 128, ..FLOOD };
    let of = |kind, bytes| [true, false].map(|in_turn| Member { kind, bytes, in_turn, ..many });
    let kinds = [
        of(Kind::GetId, 4096),
        of(Kind::Flush, 4096),
        of(Kind::Read, 4096),
        of(Kind::Write, 4096),
        of(Kind::Read, MIB),
        of(Kind::Write, MIB),
        of(Kind::Discard, 64 * MIB),
        of(Kind::WriteZeroes, 64 * MIB),
    ];
    kinds.concat().into_iter().flat_map(|m| [m, Member { packed: true, ..m }]).collect()
}

//= spec/fairness.md#FAIR-1
#[test]
fn who_asks_for_one_thing_at_a_time_is_served_every_other_turn_beside_any_flood() {
    for flood in floods() {
        let turns = turns(&[flood, Member::LIGHT], REQUESTS, 60);
        let waits = turns.split(|turn| turn.ended[1] > 0).map(<[Turn]>::len).max();
        assert!(waits <= Some(1), "it waited for {waits:?} turns beside {flood:?}");
    }
}

//= spec/fairness.md#FAIR-1
#[test]
fn a_flood_of_many_queues_gets_no_more_than_one_of_one_queue() {
    for flood in floods() {
        let turns = turns(&[flood, Member { queues: 1, ..flood }], REQUESTS, 400);
        // Large requests are counted by their parts.
        let share = |member| {
            let ops = turns.iter().map(|turn| turn.ops_of(member).count()).sum::<usize>();
            if ops > 0 { ops } else { ended(&turns, member) as usize }
        };
        let (many, one) = (share(0), share(1));
        assert!(one > 0 && many.abs_diff(one) * 5 <= many.max(one), "{many} and {one}: {flood:?}");
    }
}

//= spec/fairness.md#FAIR-8
#[test]
fn a_device_that_uses_its_share_up_has_turns_for_itself() {
    // What others do elsewhere costs this turn next to nothing.
    for flood in floods().into_iter().filter(|flood| flood.in_turn) {
        let turns = turns(&[flood, Member::LIGHT], REQUESTS, 60);
        for turn in turns.iter().filter(|turn| turn.ended[1] > 0) {
            assert_eq!((turn.ops_of(0).count(), turn.ended[0]), (0, 0), "behind {flood:?}");
        }
    }
}

//= spec/fairness.md#FAIR-2
#[test]
fn one_device_has_the_whole_turn_and_two_have_a_quarter_of_it() {
    let flood = Member { kind: Kind::Write, depth: QUEUE_BATCH, ..FLOOD };
    let alone = turns(&[flood], REQUESTS, 20);
    let each = u64::from(TURN_COST) / u64::from(QUEUE_BATCH);
    assert_eq!(spent(&alone[9], 0, &flood), u64::from(TURN_COST), "a batch of 4 KiB");
    assert_eq!(alone[9].work.chains, QUEUE_BATCH.into());
    for turn in turns(&[flood, flood], REQUESTS, 20) {
        for member in [0, 1] {
            let spent = spent(&turn, member, &flood);
            assert!(spent <= u64::from(TURN_COST) / 8 + each, "{spent}");
        }
    }
    let ids = Member { kind: Kind::GetId, queues: 4, ..flood };
    assert!(turns(&[ids], REQUESTS, 9).iter().all(|turn| turn.work.chains == TURN_CHAINS));
    let shared = turns(&[ids, ids], REQUESTS, 9);
    assert!(shared.iter().all(|turn| turn.work.chains <= TURN_CHAINS / 8));
}

//= spec/fairness.md#FAIR-2
#[test]
fn everybody_has_something_however_many_there_are() {
    let members = [Member { kind: Kind::WriteZeroes, bytes: MIB, ..FLOOD }; 40];
    let turns = turns(&members, REQUESTS, turns_max(members.len()));
    let had = |member: usize| turns.iter().any(|turn| turn.ops_of(member).next().is_some());
    assert!((0..members.len()).all(had));
}

//= spec/fairness.md#FAIR-3
#[test]
fn a_turn_is_bounded_in_bytes_and_in_slow_operations() {
    let slow = u64::from(OP_COST) + SLICE_BYTES;
    for flood in floods() {
        for turn in turns(&[flood], REQUESTS, 30) {
            let cost = spent(&turn, 0, &flood);
            assert!(cost < u64::from(TURN_COST) + slow, "{cost} in one turn of {flood:?}");
        }
    }
    let flushes = Member { kind: Kind::Flush, ..FLOOD };
    let most = u64::from(TURN_COST).div_ceil(slow);
    for turn in turns(&[flushes], REQUESTS, 30) {
        assert!(turn.ops.len() as u64 <= most, "{} flushes", turn.ops.len());
    }
    let elsewhere = Member { in_turn: false, ..flushes };
    let handed = turns(&[elsewhere], REQUESTS, 30);
    assert!(handed.iter().any(|turn| turn.ops.len() as u64 > most), "they cost nobody a sync");
}

//= spec/fairness.md#FAIR-4
#[test]
fn what_is_done_inside_a_turn_is_cut_into_slices() {
    for (kind, bytes) in [
        (Kind::Read, MIB),
        (Kind::Write, MIB),
        (Kind::Discard, 64 * MIB),
        (Kind::WriteZeroes, 64 * MIB),
    ] {
        let flood = Member { kind, bytes, ..FLOOD };
        let elsewhere = Member { in_turn: false, ..flood };
        let longest = |members: &[Member]| {
            let turns = turns(members, REQUESTS, 20);
            turns.iter().flat_map(|turn| turn.ops_of(0)).map(|op| op.len).max()
        };
        let moved = matches!(kind, Kind::Read | Kind::Write);
        let slice = if moved { SLICE_BYTES } else { CLEARED_BYTES };
        assert_eq!(longest(&[flood]), Some(slice), "{kind:?}");
        let whole = if moved { PART_BYTES_MAX } else { bytes.into() };
        assert_eq!(longest(&[elsewhere]), Some(whole), "{kind:?} alone");
        let shared = if moved { SLICE_BYTES } else { bytes.into() };
        assert_eq!(longest(&[elsewhere, Member::LIGHT]), Some(shared), "{kind:?} beside another");
    }
}

//= spec/fairness.md#FAIR-5
#[test]
fn no_device_holds_all_places_while_there_is_another() {
    let stuck = Member { queues: 8, in_turn: false, answers: false, ..FLOOD };
    // The flood has come first, and nothing of it ever ends.
    for requests in [8, 64] {
        let turns = turns(&[stuck, Member::LIGHT], requests, 40);
        let taken: u32 = turns.iter().map(|turn| turn.work.chains).sum();
        assert!(taken > 0 && turns[5..].iter().filter(|turn| turn.ended[1] > 0).count() > 10);
    }
    // With nobody else they are all its own.
    let (mut arena, mem) = (arena(&[stuck], 64), memory(&[stuck]));
    let mut crowd = Crowd::new(&mut arena, &mem, &[stuck]);
    (0..20).for_each(|_| drop(crowd.turn(0)));
    assert_eq!((crowd.shard.live(), crowd.shard.ops_live()), (64, 64));
}

//= spec/fairness.md#FAIR-5
#[test]
fn floods_that_want_all_places_have_equally_many() {
    let stuck = Member { queues: 8, in_turn: false, answers: false, ..FLOOD };
    let members = [stuck, Member { queues: 2, ..stuck }, Member::LIGHT];
    let (mut arena, mem) = (arena(&members, 60), memory(&members));
    let mut crowd = Crowd::new(&mut arena, &mem, &members);
    crowd.set_quiet(2, true);
    let mut sent = [0, 0];
    for _ in 0..80 {
        let turn = crowd.turn(0);
        for (member, sent) in sent.iter_mut().enumerate() {
            *sent += turn.ops_of(member).count();
        }
    }
    assert!(sent[0] > 0 && sent[0] == sent[1], "{sent:?}");
    assert_eq!(crowd.shard.live(), 40, "as many as each has are left for who comes next");
    crowd.set_quiet(2, false);
    let later: Vec<_> = (0..40).map(|_| crowd.turn(2)).collect();
    assert!(ended(&later, 2) > 10);
}

//= spec/fairness.md#FAIR-6
#[test]
fn a_device_that_shares_its_shard_has_few_bytes_under_way() {
    let under_way = |members: &[Member]| {
        let turns = turns(members, REQUESTS, 60);
        let ops = turns.iter().flat_map(|turn| turn.ops_of(0));
        ops.map(|op| if op.kind == OpKind::Sync { SLICE_BYTES } else { op.len }).sum::<u64>()
    };
    assert!(under_way(&[STUCK]) > 8 * FLIGHT_BYTES, "alone it has the kernel for itself");
    let two = [STUCK, Member::LIGHT];
    let (mut arena, mem) = (arena(&two, REQUESTS), memory(&two));
    let mut crowd = Crowd::new(&mut arena, &mem, &two);
    let turns: Vec<_> = (0..60).map(|_| crowd.turn(0)).collect();
    let sent: u64 = turns.iter().flat_map(|turn| turn.ops_of(0)).map(|op| op.len).sum();
    assert!(sent <= FLIGHT_BYTES / 2 + SLICE_BYTES, "{sent} bytes");
    assert!(ended(&turns, 1) > 20);
}

//= spec/fairness.md#FAIR-6
#[test]
fn a_device_whose_neighbour_thinks_does_not_fill_the_store() {
    let two = [STUCK, Member::LIGHT];
    let (mut arena, mem) = (arena(&two, REQUESTS), memory(&two));
    let mut crowd = Crowd::new(&mut arena, &mem, &two);
    let sent = |turn: &Turn| turn.ops_of(0).map(|op| op.len).sum::<u64>();
    crowd.set_quiet(0, true);
    (0..20).for_each(|_| drop(crowd.turn(0)));
    crowd.set_quiet(0, false);
    (0..20).for_each(|_| drop(crowd.turn(0)));
    crowd.set_quiet(1, true);
    // Its queue is armed long before the others count as alone.
    let more: u64 = (0..LINGER_TURNS / 2).map(|_| sent(&crowd.turn(0))).sum();
    assert_eq!(more, 0, "bytes beside one who thinks");
    let alone: u64 = (0..LINGER_TURNS).map(|_| sent(&crowd.turn(0))).sum();
    let most = FLIGHT_ALONE_BYTES + u64::from(OP_COST) + PART_BYTES_MAX;
    assert!(alone > FLIGHT_ALONE_BYTES / 2 && alone < most, "{alone} bytes, and others may come");
}

//= spec/fairness.md#FAIR-7
#[test]
fn armed_queues_are_looked_at_by_device() {
    let members = [Member { queues: 64, ..Member::LIGHT }, Member::LIGHT];
    let (mut arena, mem) = (arena(&members, REQUESTS), memory(&members));
    let mut crowd = Crowd::new(&mut arena, &mem, &members);
    (0..40).for_each(|_| drop(crowd.turn(0)));
    for member in [0, 1] {
        crowd.set_quiet(member, true);
    }
    (0..40).for_each(|_| drop(crowd.turn(0)));
    assert_eq!(crowd.shard.arm(&mem), Idle::Idle);
    crowd.set_quiet(1, false);
    assert_eq!(crowd.turn(0).work.chains, 0, "armed: nobody looks");
    let found = (0..3).map(|_| crowd.turn(1)).filter(|turn| turn.ended[1] > 0).count();
    assert!(found > 0, "every second look is at the other device");
}

//= spec/fairness.md#FAIR-9
#[test]
fn a_shard_does_not_sleep_on_what_waits_for_its_next_turn() {
    let flood = Member { kind: Kind::Write, bytes: MIB, depth: 4, ..FLOOD };
    let (mut arena, mem) = (arena(&[flood], REQUESTS), memory(&[flood]));
    let mut crowd = Crowd::new(&mut arena, &mem, &[flood]);
    (0..3).for_each(|_| drop(crowd.turn(0)));
    crowd.set_quiet(0, true);
    let mut worked = 0;
    while crowd.shard.arm(&mem) == Idle::More {
        assert!(crowd.turn(0).work.is_some(), "something is left, so there is a turn for it");
        worked += 1;
    }
    assert!(worked > 1, "it took several turns");
    assert_eq!(crowd.shard.live(), 0, "all of it has come back");
}

//= spec/fairness.md#FAIR-1
//= spec/fairness.md#FAIR-5
#[test]
fn i22_nobody_waits_longer_than_is_allowed_for() {
    for seed in 0..300 {
        crowd::run(seed).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
}

//= spec/fairness.md#FAIR-10
#[test]
fn control_messages_do_not_wait_behind_a_flood() {
    for flood in floods() {
        let members = [flood, Member::LIGHT];
        let (mut arena, mem) = (arena(&members, REQUESTS), memory(&members));
        let mut crowd = Crowd::new(&mut arena, &mem, &members);
        (0..9).for_each(|_| drop(crowd.turn(0)));
        let mut answered = |event, turns: usize| {
            crowd.say(1, event);
            let replies: Vec<_> = (0..turns).flat_map(|_| crowd.turn(0).replies).collect();
            assert_eq!(replies.len(), 1, "beside {flood:?}: {replies:?}");
            assert!(replies[0].0 == 1 && !matches!(replies[0].1, ControlReply::Deferred));
        };
        answered(ControlEvent::GetFeatures, 1);
        // What its ring has under way has its turns first.
        answered(ControlEvent::GetVringBase { index: 0 }, turns_max(members.len()));
        answered(ControlEvent::GetFeatures, 1);
    }
}
