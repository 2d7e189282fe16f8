"""`decide`: the only place that changes a run.

    decide(run, happening, plan, now) -> Decision(run', events)

Pure: the clock, randomness and ids are arguments. A happening that the run's state does not allow raises and
changes nothing; one that already took effect gives back the same run object and no events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamline_trio._core import happenings as h
from streamline_trio._core.decide import (
    answering,
    archiving,
    claiming,
    compensating,
    composing,
    joining,
    migrating,
    noting,
    outbox,
    pacing,
    slotting,
    steering,
    stepping,
    suspending,
)
from streamline_trio._core.decide.admission import StartRequest, admit, cause_of, has_same_cause
from streamline_trio._core.decide.forking import ForkRequest, fork
from streamline_trio._core.decide.turn import Decision, Turn
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.plan import Plan

_RULES: dict[type[h.Happening], Callable[[Turn, Any], bool | None]] = {
    h.Finished: stepping.finished,
    h.Skipped: stepping.skipped,
    h.AttemptFailed: stepping.attempt_failed,
    h.WentTo: stepping.went_to,
    h.HandedBack: stepping.handed_back,
    h.CancelUnwound: stepping.cancel_unwound,
    h.DeadlinePassed: stepping.deadline_passed,
    h.Undone: compensating.undone,
    h.UndoFailed: compensating.undo_failed,
    h.Suspended: suspending.suspended,
    h.WaitOpened: suspending.wait_opened,
    h.WaitsOpened: composing.waits_opened,
    h.TimeCame: composing.time_came,
    h.PieceSaved: composing.piece_saved,
    h.BranchesStarted: joining.branches_started,
    h.StateSet: noting.state_set,
    h.CheckpointSaved: noting.checkpoint_saved,
    h.Memoized: noting.memoized,
    h.Claimed: claiming.claimed,
    h.LeaseLapsed: claiming.lapsed,
    h.Migrated: migrating.migrated,
    h.Answered: answering.answered,
    h.Withdrawn: answering.withdrawn,
    h.SignalArrived: answering.signal_arrived,
    h.ChildrenEnded: joining.children_ended,
    h.ErrandsDone: outbox.errands_done,
    h.ErrandsTaken: outbox.errands_taken,
    h.CancelAsked: steering.cancel_asked,
    h.PauseAsked: steering.pause_asked,
    h.UnpauseAsked: steering.unpause_asked,
    h.Rewound: steering.rewound,
    h.Retried: steering.retried,
    h.SlotGranted: slotting.slot_granted,
    h.SlotRefused: slotting.slot_refused,
    h.SlotAsked: slotting.slot_asked,
    h.Slotted: pacing.slotted,
    h.Bumped: pacing.bumped,
    h.OutputPinned: archiving.output_pinned,
}


def decide(run: RunDoc, happening: h.Happening, plan: Plan, now: int, commit: int | None = None) -> Decision:
    """The next run, and the events to publish once it is committed.

    `now` is in milliseconds since the epoch; `commit` is the id under which the result will be written.
    Raises `LeaseLost` for a holder's happening under another lease, `InvalidState`, `ValidationError`,
    `TokenInvalid` or `StepNotFound` for what the run does not allow, `InvalidTransition` for a bug of ours.
    """
    turn = Turn(run, plan, now)
    rule = _RULES[type(happening)]
    if rule(turn, happening) is False:
        return Decision(run)
    if turn.goes_on_undoing:
        compensating.go_on(turn, happening)
    if run.head.attention and turn.lease is not None and isinstance(happening, h.Held):
        turn.change(attention=False)
    return turn.build(commit)


__all__ = ["Decision", "ForkRequest", "StartRequest", "admit", "cause_of", "decide", "fork", "has_same_cause"]
