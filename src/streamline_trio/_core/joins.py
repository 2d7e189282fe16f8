"""The arithmetic of joins: which branches have ended, what that comes to, how many more may start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Literal, get_args

import msgspec

from streamline_trio._core.documents import ErrorDoc, Outcome, Record
from streamline_trio._core.errors import RunCancelled
from streamline_trio._core.status import RunStatus

JoinPolicy = Literal["all", "any", "race", "settled"]
POLICIES: tuple[JoinPolicy, ...] = get_args(JoinPolicy)

_DIGITS = 32


def branch_id(group: str, index: int) -> str:
    """The id of the run that is a branch of a join."""
    return f"{group}-{index}"


def digest_of(branches: Sequence[tuple[str, str]]) -> str:
    """What tells one set of branches from another: their keys and workflows, in order."""
    return sha256(msgspec.msgpack.encode(branches)).hexdigest()[:_DIGITS]


def bits_of(text: str) -> int:
    """A set of branch numbers from its stored form."""
    return int(text, 16) if text else 0


def set_of(places: Iterable[int]) -> int:
    """A set of branch numbers as bits."""
    bits = 0
    for place in places:
        bits |= 1 << place
    return bits


def outcome_of(record: Record) -> Outcome | None:
    """What the ends of a join's branches come to by its policy; None if more must end."""
    ended, good = bits_of(record.ended), bits_of(record.good)
    is_complete = ended.bit_count() >= record.branches
    match record.policy:
        case "all":
            if ended != good:
                return "failed"
            is_over = is_complete
        case "any":
            is_over = is_complete or good != 0
        case "race":
            is_over = ended != 0
        case _:
            is_over = is_complete
    return "value" if is_over else None


def may_start_more(record: Record) -> bool:
    """Whether a join that starts only some branches at a time may start another one."""
    return record.started < record.branches and room_of(record) > 0


def goes_on(record: Record) -> bool:
    """Whether who asked for it can go on: it has its outcome, or more branches of a join are to be started."""
    return record.outcome is not None or (record.kind == "join" and may_start_more(record))


def room_of(record: Record) -> int:
    """How many more branches may be under way."""
    if record.concurrency is None:
        return record.branches
    # One that has ended may be beyond those that are known to have been started.
    ended = bits_of(record.ended) & ((1 << record.started) - 1)
    return record.concurrency - (record.started - ended.bit_count())


def ended_with(error: ErrorDoc | None, cancel_reason: str | None, status: RunStatus) -> ErrorDoc | None:
    """What to tell of a run that did not end well: not where in its code; None of one that did."""
    if status == "done":
        return None
    if status == "cancelled":
        return ErrorDoc(code=RunCancelled.code, message=cancel_reason or "", type="RunCancelled")
    return None if error is None else msgspec.structs.replace(error, traceback=None)
