"""Children of a run: how far they have been started, and what their ends come to.

Each end is told by a nudge, which may come late, twice and in any order; a suspension that is over, or was asked
afresh since, takes no notice. The ends of a join are gathered as bits, and the parent is woken only when they
matter: the policy has come to its end, or a further branch may start.
"""

from __future__ import annotations

from itertools import groupby

import msgspec

from streamline_trio._core.decide.turn import Turn
from streamline_trio._core.documents import Record
from streamline_trio._core.happenings import BranchesStarted, ChildEnd, ChildrenEnded
from streamline_trio._core.joins import bits_of, may_start_more, outcome_of, set_of

_replace = msgspec.structs.replace


def branches_started(turn: Turn, happening: BranchesStarted) -> bool:
    """Note how far the starting has come."""
    turn.require_held(happening)
    record = turn.records.get(happening.key)
    if record is None or record.group != happening.group or record.started >= happening.started:
        return False
    turn.put_record(happening.key, _replace(record, started=happening.started))
    turn.change(streak=0)
    return True


def children_ended(turn: Turn, happening: ChildrenEnded) -> bool:
    """Take note of ends that an open suspension of this run waits for. False: it waits for none of them."""
    noted = False
    ends = sorted(happening.ends, key=lambda end: (end.key, end.group, end.index))
    for (key, group), of_group in groupby(ends, key=lambda end: (end.key, end.group)):
        record = turn.records.get(key)
        if record is None or record.group != group or not record.is_open:
            continue
        if record.kind == "child":
            _end_child(turn, key, next(of_group))
            noted = True
        else:
            noted = _end_branches(turn, key, record, list(of_group)) or noted
    return noted


def _end_child(turn: Turn, key: str, end: ChildEnd) -> None:
    is_good = end.status == "done"
    record = _replace(turn.records[key], status=end.status, error=end.error)
    turn.put_record(key, record)
    turn.resolve(key, "value" if is_good else "failed", value=end.output, note=end.output_step or None)
    turn.wake()


def _end_branches(turn: Turn, key: str, record: Record, ends: list[ChildEnd]) -> bool:
    known, good = bits_of(record.ended), bits_of(record.good)
    fresh = [end for end in ends if not known >> end.index & 1]
    if not fresh:
        return False
    known |= set_of(end.index for end in fresh)
    good |= set_of(end.index for end in fresh if end.status == "done")
    bad = next((end for end in fresh if end.status != "done"), None)
    record = _replace(record, ended=f"{known:x}", good=f"{good:x}")
    if bad is not None and not record.status:
        record = _replace(record, status=bad.status, error=bad.error)
    turn.put_record(key, record)
    if (outcome := outcome_of(record)) is not None:
        turn.resolve(key, outcome)
        turn.wake()
    elif may_start_more(record):
        turn.wake()
    return True
