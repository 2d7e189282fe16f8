"""What scatters, loops and emissions make durable while their step runs: pieces, and waits of single keys."""

from __future__ import annotations

from streamline_trio._core.decide.compensating import require_entered
from streamline_trio._core.decide.suspending import open_wait
from streamline_trio._core.decide.turn import Turn
from streamline_trio._core.documents import Piece
from streamline_trio._core.happenings import PieceSaved, TimeCame, WaitsOpened


def piece_saved(turn: Turn, happening: PieceSaved) -> bool:
    """Keep the piece in the same write that forgets what led to it. What has come to its end stays as it is."""
    turn.require_held(happening)
    if turn.status == "compensating":
        require_entered(turn, happening.step)
    else:
        turn.require_running(happening.step)
    known = turn.pieces.get(happening.path)
    if known is not None and (known.done or known.round >= happening.round):
        return False
    turn.drop("records", [key for key in happening.records if key in turn.records])
    turn.drop("pieces", [path for path in happening.pieces if path in turn.pieces])
    turn.put("pieces", happening.path, Piece(value=happening.value, round=happening.round, done=happening.done))
    turn.change(streak=0)
    return True


def waits_opened(turn: Turn, happening: WaitsOpened) -> None:
    """Open the waits of keys that have unwound, so that they can be answered while others run."""
    turn.require_held(happening)
    turn.require_running(happening.step)
    for ask in happening.asks:
        open_wait(turn, happening.step, ask)


def time_came(turn: Turn, happening: TimeCame) -> bool:
    """Give these waits their outcome, of those whose time has come; none while the run is paused."""
    turn.require_held(happening)
    turn.require_running(happening.step)
    if turn.paused:
        return False
    came = [key for key in happening.keys if _is_due(turn, key)]
    for key in came:
        turn.resolve(key, "fired" if turn.records[key].kind == "timer" else "timed_out")
    return bool(came)


def _is_due(turn: Turn, key: str) -> bool:
    record = turn.records.get(key)
    return record is not None and record.is_open and record.due_at is not None and record.due_at <= turn.now
