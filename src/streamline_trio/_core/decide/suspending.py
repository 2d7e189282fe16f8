"""A handler suspends: its wishes become records, and the run parks, or goes on if one has its outcome already."""

from __future__ import annotations

import msgspec

from streamline_trio._core.decide.matching import take_message
from streamline_trio._core.decide.stepping import overdue
from streamline_trio._core.decide.turn import Turn
from streamline_trio._core.documents import Record
from streamline_trio._core.errors import SuspensionError
from streamline_trio._core.events import StepWaiting, WorkflowWaiting
from streamline_trio._core.happenings import Ask, Suspended, WaitOpened
from streamline_trio._core.joins import goes_on

_replace = msgspec.structs.replace


def suspended(turn: Turn, happening: Suspended) -> None:
    """Park, unless a wait is over already: then the run stays leased and the handler is entered again.

    While the run is paused no wait times out, so a time that has come fires when it is unpaused.
    """
    turn.require_held(happening)
    turn.require_running(happening.step)
    if turn.cancel_requested:
        turn.settle_cancelled(turn.head.cancel_reason)
        return
    if turn.is_overdue:
        turn.settle_failed(overdue(turn))
        return
    _own_replayed(turn, happening)
    for ask in happening.asks:
        open_wait(turn, happening.step, ask)
    turn.change(streak=0)
    if not turn.paused:
        fire(turn)
    awaited = {ask.key for ask in happening.asks}.union(happening.kept)
    if any(key not in turn.records or goes_on(turn.records[key]) for key in awaited):
        if happening.release:
            turn.release()
        return
    _close_others(turn, awaited)
    turn.move_step(happening.step, "waiting")
    turn.to("waiting")
    turn.emit(WorkflowWaiting, step=happening.step)
    turn.release()


def wait_opened(turn: Turn, happening: WaitOpened) -> None:
    """Open a wait while the handler still runs, so that it can be answered at once."""
    turn.require_held(happening)
    turn.require_running(happening.step)
    open_wait(turn, happening.step, happening.ask)


def _close_others(turn: Turn, asked: set[str]) -> None:
    """A wait that an earlier attempt opened and this one did not ask for must not take signals or answers."""
    turn.drop("records", [k for k, record in turn.records.items() if record.outcome is None and k not in asked])


def open_wait(turn: Turn, step_id: str, ask: Ask) -> None:
    """Make or adopt the record of an ask; a signal that has come already is taken from the inbox."""
    _take_token(turn, step_id, ask)
    known = turn.records.get(ask.key)
    if known is not None and known.ask == ask.ask:
        if known.outcome is None:
            _adopt(turn, ask, known)
        return
    turn.put_record(ask.key, _record(turn, step_id, ask))
    turn.emit(StepWaiting, step=step_id, kind=ask.kind, reason=ask.reason or ask.signal, due_at_millis=ask.due_at)
    if ask.kind == "signal":
        take_message(turn, ask.key)


def _take_token(turn: Turn, step_id: str, ask: Ask) -> None:
    """A token answers one wait: that of an earlier attempt gives way, that of the same attempt does not."""
    if ask.token is None:
        return
    for key, record in turn.records.items():
        if key != ask.key and record.is_open and ask.token in record.tokens:
            if record.attempt == turn.step(step_id).attempts:
                raise SuspensionError(f"step {step_id}: one token is to answer two waits", step=step_id)
            turn.drop("records", [key])
            return


def fire(turn: Turn) -> bool:
    """Give every open wait whose time has come its outcome; whether there was one."""
    due = [
        (key, record)
        for key, record in turn.records.items()
        if record.outcome is None and record.due_at is not None and record.due_at <= turn.now
    ]
    for key, record in due:
        turn.resolve(key, "fired" if record.kind == "timer" else "timed_out")
    return bool(due)


def _own_replayed(turn: Turn, happening: Suspended) -> None:
    """What this attempt was given of earlier ones is its own from now: it must ask for it again in this order."""
    attempt = turn.step(happening.step).attempts
    for key, place in happening.replayed:
        if key in turn.records:
            turn.put_record(key, _replace(turn.records[key], attempt=attempt, place=place))


def _adopt(turn: Turn, ask: Ask, known: Record) -> None:
    """The wait of an earlier entry is still open: it keeps its deadline and its tokens."""
    tokens = known.tokens
    if ask.token is not None and ask.token not in tokens:
        tokens = (*tokens, ask.token)
    attempt = turn.step(turn.current()).attempts
    turn.put_record(
        ask.key,
        _replace(
            known,
            tokens=tokens,
            told=ask.told,
            unwound=ask.unwound,
            attempt=attempt,
            place=ask.place,
            started=max(known.started, ask.started),
        ),
    )


def _record(turn: Turn, step_id: str, ask: Ask) -> Record:
    return Record(
        kind=ask.kind,
        ask=ask.ask,
        attempt=turn.step(step_id).attempts,
        place=ask.place,
        opened_at=turn.now,
        due_at=ask.due_at,
        name=ask.name,
        reason=ask.reason,
        signal=ask.signal,
        match=ask.match,
        shape=ask.shape,
        meta=ask.meta,
        approval=ask.approval,
        tokens=() if ask.token is None else (ask.token,),
        told=ask.told,
        unwound=ask.unwound,
        group=ask.group,
        policy=ask.policy,
        branches=ask.branches,
        started=ask.started,
        concurrency=ask.concurrency,
        keeps_losers=ask.keeps_losers,
    )
