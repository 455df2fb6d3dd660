//! Rules that the model can be told to break, one at a time: the proof that the conformance suite notices.

/// One rule broken. What each variant says is what the wrong kernel does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// A limit write stores what usage does not fit under.
    LimitWriteIgnoresAnon,
    /// A limit write that is EBUSY leaves the new limit.
    FailedLimitWriteStays,
    /// A limit write reclaims nothing.
    LimitWriteReclaimsNothing,
    /// A limit write reclaims far more than it has to.
    LimitWriteOvershoots,
    /// A limit write never swaps.
    LimitWriteNeverSwaps,
    /// A limit write goes on when a signal comes.
    LimitWriteIgnoresSignals,
    /// A limit write that a signal ended leaves the new limit.
    InterruptedLimitWriteStays,
    /// A raise is made although a signal is pending.
    RaiseIgnoresSignals,
    /// A shrink in flight stops when somebody raises the limit.
    ShrinkHeedsTheRaise,
    /// A limit above memsw is taken.
    LimitAboveMemswIsTaken,
    /// A memsw below the limit is taken.
    MemswBelowLimitIsTaken,
    /// Charges do not look at the limit.
    ChargesIgnoreTheLimit,
    /// Limits are rounded up to a page.
    LimitsAreRoundedUp,
    /// -1 is no value.
    MinusOneIsRefused,
    /// What is no size is 0.
    JunkIsZero,
    /// Nobody is told of a write to a control file.
    WritesAreNotTold,
    /// Who watches a control file is told of reads, too.
    ReadsAreTold,
    /// `force_empty` goes on when a signal comes.
    ForceEmptyIgnoresSignals,
    /// `force_empty` is EBUSY if something is left.
    ForceEmptyIsBusy,
    /// `force_empty` waits after each fruitless pass, as it did through 5.15.
    ForceEmptyWaits,
    /// `force_empty` does not swap what the kernel would not.
    ForceEmptyHonoursMemsw,
    /// `force_empty` leaves the limit at 0.
    ForceEmptyTakesTheLimit,
    /// Reclaim swaps at swappiness 0.
    SwappinessZeroSwaps,
    /// memsw writes swap.
    MemswWriteSwaps,
    /// Swapping lowers what memsw counts.
    SwappingLowersMemsw,
    /// With memsw equal to the limit a charge swaps all the same.
    TightMemswSwaps,
    /// With memsw equal to the limit `memory.failcnt` counts.
    TightMemswCountsFailures,
    /// `memory.swap.max` is not looked at.
    SwapMaxIsIgnored,
    /// The killer comes before cache is reclaimed.
    KillsBeforeReclaim,
    /// `oom_kill` does not rise.
    KillsAreNotCounted,
    /// `oom_kill` rises in the group whose limit was hit.
    KillsAreCountedAtTheLimit,
    /// A kill signals no eventfd, and modifies no file.
    KillsAreNotTold,
    /// An OOM signals the eventfds of the very group only.
    OomSparesDescendants,
    /// Removal signals no eventfd.
    RemovalIsNotTold,
    /// `failcnt` stays 0.
    FailuresAreNotCounted,
    /// `failcnt` rises in the group that charges.
    FailuresAreCountedAtTheCharger,
    /// `failcnt` cannot be reset.
    FailcntIsNotReset,
    /// `oom_kill_disable` disables nothing.
    DisabledKillerKills,
    /// With the killer disabled system calls wait.
    DisabledSyscallsWait,
    /// With the killer disabled copies to user space wait.
    DisabledCopiesWait,
    /// With the killer disabled page faults fail.
    DisabledFaultsFail,
    /// An equal limit wakes who waits for memory.
    EqualLimitWakes,
    /// A raise does not wake who waits for memory.
    RaiseDoesNotWake,
    /// 0 to `oom_control` does not wake who waits for memory.
    ArmingDoesNotWake,
    /// A registration on a group under OOM is not signalled at once.
    UnderOomIsNotTold,
    /// A new group does not have its parent's `oom_kill_disable`.
    FlagIsNotCopied,
    /// A threshold signals when it is registered past.
    ThresholdTellsAtRegistration,
    /// A threshold signals on the way up only.
    ThresholdTellsUpOnly,
    /// A threshold signals at every look.
    ThresholdTellsAlways,
    /// Thresholds are looked at once in 8192 page events.
    ThresholdsAreSeldomLookedAt,
    /// Kernel memory makes the kernel look at thresholds.
    KernelMemoryIsAPageEvent,
    /// A CPU charges 4096 pages ahead.
    StocksAreLarge,
    /// The peak is usage.
    PeakFollowsUsage,
    /// `use_hierarchy` 0 is as 1.
    FlatIsHierarchical,
    /// Children do not count into the parent.
    ChildrenDoNotCount,
    /// Reclaim takes from the group itself only.
    ChildrenAreNotReclaimed,
    /// A task that moves takes its charges along.
    MovesTakeCharges,
    /// Shared memory is on the file lists.
    ShmemIsOnFileLists,
    /// Locked memory is evictable in the statistics.
    LockedIsEvictable,
    /// Dirty pages are clean in the statistics.
    DirtyIsNotShown,
    /// The cache of a removed group goes with it.
    RemovalTakesCache,
    /// Reclaim passes dying groups by.
    DyingAreNotReclaimed,
    /// rmdir removes a group with tasks.
    RmdirIgnoresTasks,
    /// rmdir does not wait for a write in flight.
    RmdirIgnoresWrites,
    /// The open files of a removed group answer.
    RemovedFilesAnswer,
    /// A frozen v1 task dies of SIGKILL.
    FrozenTaskDies,
    /// A frozen v2 task does not die of SIGKILL.
    FrozenV2TaskLives,
    /// Frozen tasks run.
    FrozenTasksRun,
    /// A frozen group does not freeze those below.
    FreezingStaysInTheGroup,
    /// A group shows FROZEN if one below it is.
    FreezingShowsAbove,
    /// A task that waits for memory counts as frozen.
    WaiterFreezes,
    /// `memory.max` below usage is EBUSY.
    MaxIsBusy,
    /// `memory.max` below what cannot be reclaimed kills nobody.
    MaxKillsNobody,
    /// `memory.oom.group` is not looked at.
    OomGroupIsIgnored,
    /// `memory.events` does not count up to the root.
    EventsStayLocal,
    /// `memory.events.local` counts what happens below.
    LocalEventsCountAll,
    /// `memory.high` makes nobody sleep.
    HighNeverSleeps,
    /// `memory.high` makes tasks sleep at once.
    HighSleepsAtOnce,
    /// A write of `memory.high` does not reclaim.
    HighWriteReclaimsNothing,
    /// A write of `memory.high` kills.
    HighWriteKills,
    /// Charges over `memory.high` are not counted.
    HighIsNotCounted,
    /// `memory.reclaim` takes four times what is asked.
    ReclaimTakesMore,
    /// `memory.reclaim` is never EAGAIN.
    ShortReclaimIsFine,
    /// `memory.reclaim` goes on when a signal comes.
    ReclaimIgnoresSignals,
    /// `memory.low` is not looked at.
    LowIsIgnored,
    /// `memory.low` never gives way.
    LowNeverGivesWay,
    /// `memory.min` gives way.
    MinGivesWay,
    /// `cgroup.kill` kills in the very group only.
    KillStaysInTheGroup,
    /// `cgroup.subtree_control` takes a controller for a group with tasks.
    SubtreeControlIgnoresTasks,
}

impl Mutation {
    /// Every one, v1 first.
    pub const ALL: &'static [Mutation] = {
        use Mutation::*;
        &[
            LimitWriteIgnoresAnon,
            FailedLimitWriteStays,
            LimitWriteReclaimsNothing,
            LimitWriteOvershoots,
            LimitWriteNeverSwaps,
            LimitWriteIgnoresSignals,
            InterruptedLimitWriteStays,
            RaiseIgnoresSignals,
            ShrinkHeedsTheRaise,
            LimitAboveMemswIsTaken,
            MemswBelowLimitIsTaken,
            ChargesIgnoreTheLimit,
            LimitsAreRoundedUp,
            MinusOneIsRefused,
            JunkIsZero,
            WritesAreNotTold,
            ReadsAreTold,
            ForceEmptyIgnoresSignals,
            ForceEmptyIsBusy,
            ForceEmptyWaits,
            ForceEmptyHonoursMemsw,
            ForceEmptyTakesTheLimit,
            SwappinessZeroSwaps,
            MemswWriteSwaps,
            SwappingLowersMemsw,
            TightMemswSwaps,
            TightMemswCountsFailures,
            SwapMaxIsIgnored,
            KillsBeforeReclaim,
            KillsAreNotCounted,
            KillsAreCountedAtTheLimit,
            KillsAreNotTold,
            OomSparesDescendants,
            RemovalIsNotTold,
            FailuresAreNotCounted,
            FailuresAreCountedAtTheCharger,
            FailcntIsNotReset,
            DisabledKillerKills,
            DisabledSyscallsWait,
            DisabledCopiesWait,
            DisabledFaultsFail,
            EqualLimitWakes,
            RaiseDoesNotWake,
            ArmingDoesNotWake,
            UnderOomIsNotTold,
            FlagIsNotCopied,
            ThresholdTellsAtRegistration,
            ThresholdTellsUpOnly,
            ThresholdTellsAlways,
            ThresholdsAreSeldomLookedAt,
            KernelMemoryIsAPageEvent,
            StocksAreLarge,
            PeakFollowsUsage,
            FlatIsHierarchical,
            ChildrenDoNotCount,
            ChildrenAreNotReclaimed,
            MovesTakeCharges,
            ShmemIsOnFileLists,
            LockedIsEvictable,
            DirtyIsNotShown,
            RemovalTakesCache,
            DyingAreNotReclaimed,
            RmdirIgnoresTasks,
            RmdirIgnoresWrites,
            RemovedFilesAnswer,
            FrozenTaskDies,
            FrozenV2TaskLives,
            FrozenTasksRun,
            FreezingStaysInTheGroup,
            FreezingShowsAbove,
            WaiterFreezes,
            MaxIsBusy,
            MaxKillsNobody,
            OomGroupIsIgnored,
            EventsStayLocal,
            LocalEventsCountAll,
            HighNeverSleeps,
            HighSleepsAtOnce,
            HighWriteReclaimsNothing,
            HighWriteKills,
            HighIsNotCounted,
            ReclaimTakesMore,
            ShortReclaimIsFine,
            ReclaimIgnoresSignals,
            LowIsIgnored,
            LowNeverGivesWay,
            MinGivesWay,
            KillStaysInTheGroup,
            SubtreeControlIgnoresTasks,
        ]
    };
}

impl crate::host::State {
    /// Whether this rule is the one that is broken.
    pub(crate) fn broken(&self, rule: Mutation) -> bool {
        self.config.mutation == Some(rule)
    }
}
