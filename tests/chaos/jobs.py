"""What the clients are to do, made from a seed."""

from __future__ import annotations

from random import Random

from tests.chaos.records import Job
from tests.chaos.workflows import ORDER

_CANCELLED = {"slow": 0.7, "shield": 0.4, "thread": 0.3, "ask": 0.12, "listen": 0.1, "nap": 0.15}
_ALWAYS_PLAIN = frozenset({"plain", "nap", "patch", "once", "back"})


def plan(seed: int, runs: int) -> list[Job]:
    """So many jobs, every shape about equally often."""
    chance = Random(f"jobs {seed}")
    shapes = [shape for _ in range(runs // len(ORDER) + 1) for shape in ORDER][:runs]
    chance.shuffle(shapes)
    return [_job(number, shape, chance) for number, shape in enumerate(shapes)]


def _job(number: int, shape: str, chance: Random) -> Job:
    cancelled = chance.random() < _CANCELLED.get(shape, 0.06)
    paused = not cancelled and chance.random() < 0.1
    return Job(
        number=number,
        shape=shape,
        pace=round(chance.uniform(0.02, 0.6), 3),
        times=_times(shape, chance),
        twins=chance.choice([1, 1, 2, 3]),
        again=shape in _ALWAYS_PLAIN and not cancelled and chance.random() < 0.15,
        rivals=chance.choice([1, 2, 3, 4]),
        answered=shape != "quiet" or chance.random() < 0.6,
        cancel_after=round(chance.uniform(0.0, 1.3 if shape == "shield" else 2.5), 2) if cancelled else None,
        pause_after=round(chance.uniform(0.0, 1.0), 2) if paused else None,
        pause_for=round(chance.uniform(0.5, 2.5), 2),
    )


def _times(shape: str, chance: Random) -> int:
    """How often: failures of `flaky` (4 of 4 fail the run), time-outs of `late` (3 of 3 do), signals, rounds."""
    if shape == "flaky":
        return chance.choice([0, 1, 2, 3, 4])
    if shape == "late":
        return chance.choice([1, 1, 2, 3])
    return chance.randint(1, 3)
