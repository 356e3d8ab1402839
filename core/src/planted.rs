//! Faults that can be planted, to prove that the simulator sees them.
//!
//! Only a build with `--cfg sluice_planted` has the switch; in every other one `planted` is
//! `false` at compile time and nothing of this is left.

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A mistake that somebody could make in one line.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault {
            $($(#[$doc])* $name,)*
        }

        impl Fault {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

faults! {
    /// The driver's wish is read without a fence behind the used index.
    NoFence,
    /// The event index is compared one too far.
    EventOffByOne,
    /// Only the first sector is checked against the capacity, not the sum.
    SumUnchecked,
    /// A head that was given back stays in flight.
    HeadKept,
    /// A stop is answered while requests are under way.
    EarlyStop,
    /// The status byte is not counted in the used length.
    UsedLength,
    /// Objects are not looked at when parts are cut.
    ObjectCrossed,
    /// A flush is answered without a sync.
    FlushSkipped,
    /// Regions are unmapped while requests use them.
    EarlyUnmap,
    /// The ring is not looked at again after it was armed.
    NoSecondLook,
    /// Requests do not wait for the image.
    CaptureSkipped,
    /// A read-only image is written to.
    ReadOnlyWritten,
    /// A part's failure is forgotten.
    FailureForgotten,
    /// A request that is refused is not given back.
    RefusedLost,
    /// A front end that has gone still gets its results.
    PublishedAfterGone,
    /// Only the first range of a discard is checked.
    RangeUnchecked,
    /// The flags of a packed batch's first used descriptor are not stored last.
    BatchUncovered,
    /// A used descriptor of a packed ring skips one entry, however many the chain had.
    SkipForgotten,
    /// The wrap counter is left out where a packed ring asks to be notified.
    WrapForgotten,
    /// The used index is stored without release: it may be seen before what it covers.
    PlainPublish,
    /// The available index is loaded without acquire.
    PlainIndex,
    /// Arming puts no fence before the second look.
    NoFenceAtArm,
    /// A header is read a second time.
    HeaderTwice,
    /// Writes that were taken before a sync failed are sent after it.
    PoisonIgnored,
    /// Writes of a front end that has gone lose their payload.
    PayloadLost,
    /// A late reply is taken for one to the slot's next use.
    StaleNames,
    /// The mark that a chain is under way is set before its number.
    MarkBeforeCounter,
    /// A fresh inflight area begins at used index 0.
    UsedIndexNotTaken,
    /// Recovery settles the last batch before its marks are cleared.
    SettledFirst,
    /// Recovery takes only one chain of the last batch for given back.
    OneHeadBatch,
    /// Recovery does not look at the last batch.
    BatchForgotten,
    /// What was taken last is submitted again first.
    OrderReversed,
    /// Marks are cleared before the used index is stored.
    ClearedFirst,
    /// A batch is settled before its marks are cleared.
    SettledEarly,
    /// The chains of a batch are not linked.
    LinksForgotten,
    /// The driver is not notified after a start.
    RecoveryUnheard,
    /// A queue goes on at the used index, whatever was taken behind it.
    TakenForgotten,
    /// A drained queue leaves its area as it is.
    AreaKept,
    /// Writes of a driver that does not flush are not synced.
    ThroughForgotten,
    /// A stop that leaves requests closes its area.
    LeftForgotten,
    /// Recovery leaves the used descriptors of a packed batch that was not given back.
    UsedLeft,
    /// Recovery takes no packed batch for given back.
    BatchDoubted,
    /// Only the first descriptor of a packed chain is kept.
    RowUnkept,
    /// The records of a packed chain are taken off the free list before the chain is marked.
    ListedFirst,
    /// A device that has used its share up keeps its place in the round.
    TurnKept,
    /// Places of the pools go to whoever comes first.
    SlotsForOne,
    /// A packed queue goes on where its front end says, not where its area does.
    FrontEndBelieved,
    /// The numbers of chains are cut to 16 bits where they are stored.
    CounterCut,
    /// The same in the areas of packed queues.
    CounterCutPacked,
    /// The numbers of chains are cut to 16 bits where they are read.
    OrderCut,
    /// The same in the areas of packed queues.
    OrderCutPacked,
    /// A ring is not marked again behind its batch.
    LastMarkForgotten,
    /// Data and status bytes are not marked again before the driver has its chains back.
    SecondMarkForgotten,
    /// Where data lands is not marked, only the status byte is.
    LandingUnlogged,
    /// What requests that are left have read is not marked.
    LeftUnlogged,
    /// A region that has left the memory table has no guest address any more.
    RetiredUnlogged,
    /// The used ring is marked without the event index behind it.
    EventUnlogged,
    /// The event suppression of a packed ring is not marked.
    SuppressionUnlogged,
    /// The wish for notifications is not marked where it is stored.
    WishUnlogged,
}

#[cfg(sluice_planted)]
static CHOSEN: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(usize::MAX);

/// Plants one fault, or none, in every shard of the process.
#[cfg(sluice_planted)]
pub fn plant(fault: Option<Fault>) {
    let chosen = fault.map_or(usize::MAX, |fault| fault as usize);
    CHOSEN.store(chosen, core::sync::atomic::Ordering::Relaxed);
}

/// Whether this fault is planted.
#[inline(always)]
#[cfg_attr(not(sluice_planted), allow(clippy::missing_const_for_fn))]
pub(crate) fn planted(fault: Fault) -> bool {
    #[cfg(sluice_planted)]
    return CHOSEN.load(core::sync::atomic::Ordering::Relaxed) == fault as usize;
    #[cfg(not(sluice_planted))]
    {
        let _ = fault;
        false
    }
}
