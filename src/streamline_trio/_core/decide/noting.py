"""What a handler makes durable while it runs: state, checkpoints, results of `once`."""

from __future__ import annotations

from streamline_trio._core.decide.compensating import require_entered
from streamline_trio._core.decide.turn import Turn
from streamline_trio._core.documents import Memo
from streamline_trio._core.happenings import CheckpointSaved, Memoized, StateSet


def state_set(turn: Turn, happening: StateSet) -> None:
    """The run's state has a new value."""
    turn.require_held(happening)
    turn.state = happening.state


def checkpoint_saved(turn: Turn, happening: CheckpointSaved) -> None:
    """The step's named slot has a new value."""
    turn.require_held(happening)
    if turn.status == "compensating":
        require_entered(turn, happening.step)
    else:
        turn.require_running(happening.step)
    turn.put("checkpoints", f"{happening.step}/{happening.name}", happening.value)


def memoized(turn: Turn, happening: Memoized) -> bool:
    """Remember a result; the first one stays."""
    turn.require_held(happening)
    if happening.key in turn.memos:
        return False
    turn.put("memos", happening.key, Memo(step=happening.step, value=happening.value))
    return True
