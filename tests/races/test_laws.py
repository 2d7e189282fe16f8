"""The laws of races notice what they are there for: each on a small story."""

from __future__ import annotations

from typing import Any, TypeAlias

import pytest
import whenever

from streamline_trio import Run
from tests.races.laws import broken
from tests.races.workflows import FEW, LIMIT, RATE, WINDOW

Story: TypeAlias = tuple[list[dict[str, Any]], list[Run]]


def run(
    workflow: str, number: int, *, created: int = 0, started: int = 0, ended: int = 1000, **changes: Any
) -> Run:
    """A run that is done, of the start of this number."""
    fields: dict[str, Any] = {
        "id": f"r{number}",
        "workflow": workflow,
        "version": "1.0.0",
        "status": "done",
        "steps": {},
        "current_step": None,
        "input": {"key": "k", "value": number},
        "created_at": instant(created),
        "started_at": instant(started),
        "ended_at": instant(ended),
        **changes,
    }
    missing = {name: None for name in Run.__struct_fields__ if name not in fields}
    return Run(**{**missing, **fields})


def instant(millis: int) -> whenever.Instant:
    return whenever.Instant.from_timestamp(millis, unit="millisecond")


def asked(
    workflow: str, number: int, at: int = 0, answered: int | None = 1, run_id: str = ""
) -> list[dict[str, Any]]:
    """A start and its answer."""
    lines: list[dict[str, Any]] = [{"asked": number, "workflow": workflow, "key": "k", "at": at}]
    if answered is not None:
        lines.append({"told": number, "run": run_id or f"r{number}", "at": answered})
    return lines


def entered(workflow: str, number: int) -> dict[str, Any]:
    return {"entered": f"r{number}", "workflow": workflow, "key": "k", "value": number}


def left(workflow: str, number: int) -> dict[str, Any]:
    return {"left": f"r{number}", "workflow": workflow, "key": "k"}


def test_nothing_is_said_against_a_good_race():
    """Proves that a story in which all promises were kept breaks no law."""
    lines = [*asked("queued", 1), *asked("throttled", 2), entered("queued", 1), left("queued", 1)]
    lines += [*asked("refused", 3, answered=None), {"refused": 4, "holding": FEW, "at": 5}]
    lines += [{"asked": 4, "workflow": "refused", "key": "k", "at": 4}]
    runs = [run("queued", 1), run("throttled", 2), run("refused", 3), run("refused", 5)]
    lines += asked("refused", 5)
    assert broken(lines, runs) == []


def too_many_inside() -> Story:
    numbers = range(LIMIT + 1)
    lines = [line for n in numbers for line in asked("queued", n)] + [entered("queued", n) for n in numbers]
    return lines + [left("queued", n) for n in numbers], [run("queued", n) for n in numbers]


def inside_again_after_a_crash() -> Story:
    """The first run entered, was killed, and enters and leaves later: it was inside all the time."""
    lines = [*asked("keyed", 1), *asked("keyed", 2), entered("keyed", 1), entered("keyed", 2)]
    lines += [left("keyed", 2), entered("keyed", 1), left("keyed", 1)]
    return lines, [run("keyed", 1), run("keyed", 2)]


def too_fast() -> Story:
    numbers = range(RATE + 1)
    step = int(WINDOW * 1000) // (RATE + 1)
    runs = [run("throttled", n, started=n * step) for n in numbers]
    return [line for n in numbers for line in asked("throttled", n)], runs


def lost() -> Story:
    return asked("queued", 1), []


def not_done() -> Story:
    return asked("queued", 1), [run("queued", 1, status="failed")]


def doubled() -> Story:
    return asked("queued", 1, answered=None), [run("queued", 1), run("queued", 1, id="other")]


def refused_and_run() -> Story:
    lines = asked("refused", 1, answered=None)
    return [*lines, {"refused": 1, "holding": FEW, "at": 1}], [run("refused", 1)]


def refused_for_nothing() -> Story:
    return [*asked("refused", 1, answered=None), {"refused": 1, "holding": 0, "at": 1}], []


def refused_after_the_end() -> Story:
    runs = [run("refused", n) for n in range(FEW)]
    lines: list[dict[str, Any]] = [line for n in range(FEW) for line in asked("refused", n)]
    lines += [{"settled": "r0", "at": 1010}, *asked("refused", 9, 1020, None)]
    return [*lines, {"refused": 9, "holding": FEW, "at": 1030}], runs


def test_a_run_holds_its_slot_until_its_end_is_stored():
    """Proves that a refusal between the end that a run has on record and the commit of that end is no fault."""
    lines, runs = refused_after_the_end()
    assert broken([{**line, "at": 1015} if line.get("asked") == 9 else line for line in lines], runs) != []
    assert broken([{**line, "at": 1005} if line.get("asked") == 9 else line for line in lines], runs) == []


def two_pending() -> Story:
    runs = [run("debounced", 1, created=0, started=500), run("debounced", 2, created=100, started=600)]
    return [*asked("debounced", 1), *asked("debounced", 2)], runs


def older_input() -> Story:
    lines = [*asked("debounced", 1, 0, 10), *asked("debounced", 2, 20, 30, run_id="r1")]
    return lines, [run("debounced", 1)]


@pytest.mark.parametrize(
    ("story", "told"),
    [
        (too_many_inside, "at a time"),
        (inside_again_after_a_crash, "2 runs of keyed"),
        (too_fast, "throttled runs"),
        (lost, "not there"),
        (not_done, "is failed"),
        (doubled, "made 2 runs"),
        (refused_and_run, "made 1 runs"),
        (refused_for_nothing, "was refused"),
        (refused_after_the_end, "was refused"),
        (two_pending, "two debounced drafts"),
        (older_input, "not of the later"),
    ],
)
def test_what_is_broken_is_told(story, told):
    """Proves that each law fails on a story in which its promise was not kept."""
    lines, runs = story()
    assert any(told in fault for fault in broken(lines, runs))
