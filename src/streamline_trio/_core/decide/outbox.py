"""What must happen elsewhere because of a transition: found by the write that makes it necessary.

`fill` compares the run before a turn with what the turn made of it, so no rule has to think of it: a run that
settles tells its parent, and children that a suspension no longer waits for are cancelled, whatever ended it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from streamline_trio._core.documents import Errand, Record
from streamline_trio._core.joins import bits_of, ended_with
from streamline_trio._core.status import SETTLED

if TYPE_CHECKING:
    from streamline_trio._core.decide.turn import Turn
    from streamline_trio._core.happenings import ErrandsDone, ErrandsTaken

_replace = msgspec.structs.replace

PATIENCE = 5_000
"""Milliseconds that an errand is left to the process that committed it."""

LONGEST_PATIENCE = 3_600_000
_MOST_DOUBLINGS = 20


def fill(turn: Turn) -> None:
    """Put into the outbox what the turn has made necessary."""
    if turn.status in SETTLED and turn.run.head.status not in SETTLED:
        _nudge_parent(turn)
    if turn.records is not turn.run.records:
        for key in sorted(turn.touched("records")):
            before = turn.run.records.get(key)
            if before is not None and before.group and before.is_open:
                _cancel_unwanted(turn, before, turn.records.get(key))


def _nudge_parent(turn: Turn) -> None:
    origin = turn.run.origin
    parent = origin.parent
    if parent is None or not parent.group:
        return
    is_done = turn.status == "done"
    # The outputs of branches are read from their runs, when the join is over.
    output_step: str = (turn.changed("output_step") or "") if is_done and not parent.branch else ""
    send(
        turn,
        Errand(
            kind="nudge",
            due_at=turn.now + PATIENCE,
            run=parent.run,
            key=parent.key,
            group=parent.group,
            index=parent.index,
            status=turn.status,
            output=turn.step(output_step).output if output_step else None,
            output_step=output_step,
            error=ended_with(turn.changed("error"), turn.changed("cancel_reason"), turn.status),
        ),
    )


def _cancel_unwanted(turn: Turn, before: Record, now: Record | None) -> None:
    """Cancel the children of a suspension that does not wait for them any more."""
    if now is not None and now.group == before.group:
        if now.is_open or _keeps_losers(now) or _is_complete(now):
            return
        ended, why = now.ended, "no longer waits for it"
    else:
        ended, why = before.ended, "has left the step that waited for it"
    if turn.status in SETTLED:
        why = f"is {turn.status}"
    errand = Errand(
        kind="cancel",
        due_at=turn.now + PATIENCE,
        group=before.group,
        branches=before.branches if before.kind == "join" else 0,
        ended=ended,
        reason=f"its parent, run {turn.run.public_id}, {why}",
    )
    send(turn, errand)


def _keeps_losers(record: Record) -> bool:
    return record.kind == "join" and record.keeps_losers


def _is_complete(record: Record) -> bool:
    """Whether no child of it can be under way."""
    if record.kind == "child":
        return bool(record.status)
    return bits_of(record.ended).bit_count() == record.branches


def send(turn: Turn, errand: Errand) -> None:
    """Put it into the outbox."""
    number = turn.changed("errands") + 1
    turn.change(errands=number)
    turn.put("outbox", f"{number:08d}", errand)


def errands_done(turn: Turn, happening: ErrandsDone) -> bool:
    """Take them out of the outbox."""
    done = [number for number in happening.numbers if number in turn.outbox]
    turn.drop("outbox", done)
    return bool(done)


def errands_taken(turn: Turn, happening: ErrandsTaken) -> bool:
    """Put off those that are due: for longer each time, so that one that cannot be done makes nobody busy."""
    due = [
        (number, turn.outbox[number])
        for number in happening.numbers
        if number in turn.outbox and turn.outbox[number].due_at <= turn.now
    ]
    for number, errand in due:
        patience = min(PATIENCE << min(errand.attempts + 1, _MOST_DOUBLINGS), LONGEST_PATIENCE)
        turn.put("outbox", number, _replace(errand, attempts=errand.attempts + 1, due_at=turn.now + patience))
    return bool(due)
