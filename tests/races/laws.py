"""What must hold of a race, told by its journal and by the runs that are stored at its end."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from streamline_trio import Run
from tests.races.workflows import FEW, LIMIT, RATE, WINDOW

CLOCKS = 3
"""Milliseconds by which the clocks of two processes of one machine may differ, each being cut to whole ones."""


class Call(NamedTuple):
    """One start: `told` is None if its process died before it had the answer, `run` if it was refused."""

    value: int
    workflow: str
    key: str
    asked: int
    told: int | None
    run: str | None


def calls_of(lines: list[dict[str, Any]]) -> list[Call]:
    """The starts that were asked for."""
    answers = {line["told"]: line for line in lines if "told" in line}
    answers |= {line["refused"]: line for line in lines if "refused" in line}
    return [
        Call(
            line["asked"],
            line["workflow"],
            line["key"],
            line["at"],
            answers.get(line["asked"], {}).get("at"),
            answers.get(line["asked"], {}).get("run"),
        )
        for line in lines
        if "asked" in line
    ]


def broken(lines: list[dict[str, Any]], runs: list[Run]) -> list[str]:
    """Every law that does not hold."""
    calls = calls_of(lines)
    stored = {run.id: run for run in runs}
    return [
        *_acknowledged(calls, stored),
        *_counts(calls, runs),
        *_bodies(lines),
        *_inside(lines, "queued", LIMIT),
        *_inside(lines, "refused", FEW),
        *_inside(lines, "keyed", 1),
        *_refusals(lines, calls, runs),
        *_rates(runs),
        *_pending(calls, runs),
    ]


def _acknowledged(calls: list[Call], stored: dict[str, Run]) -> Iterator[str]:
    """Every run that a caller was told of is there and done."""
    for call in calls:
        if call.run is None:
            continue
        run = stored.get(call.run)
        if run is None:
            yield f"start {call.value} of {call.workflow} was told of {call.run}, which is not there"
        elif run.status != "done":
            yield f"run {run.id} of {run.workflow} is {run.status}: {run.error}"


def _counts(calls: list[Call], runs: list[Run]) -> Iterator[str]:
    """One run per acknowledged start, none per refused one, at most one per start without an answer."""
    found = Counter(run.input["value"] for run in runs)
    told_of = {call.run for call in calls if call.run is not None}
    unanswered = {call.value for call in calls if call.told is None}
    for call in calls:
        times = found[call.value]
        if call.workflow in {"debounced", "keyed"}:
            if times > 1:
                yield f"start {call.value} of {call.workflow} made {times} runs"
        elif call.told is not None and times != (call.run is not None):
            yield f"start {call.value} of {call.workflow} ({call.run or 'refused'}) made {times} runs"
        elif times > 1:
            yield f"start {call.value} of {call.workflow}, which was not answered, made {times} runs"
    for run in runs:
        if run.id not in told_of and run.input["value"] not in unanswered:
            yield f"run {run.id} of {run.workflow} was made by nobody"


def _bodies(lines: list[dict[str, Any]]) -> Iterator[str]:
    """What was left is not left again, since a finished step does not run again."""
    ended = Counter(line["left"] for line in lines if "left" in line)
    entered = {line["entered"] for line in lines if "entered" in line}
    for run_id in set(ended) - entered:
        yield f"run {run_id} left without having entered"


def _inside(lines: list[dict[str, Any]], workflow: str, most: int) -> Iterator[str]:
    """By the order of the journal: from when a run first entered until it last left it is inside."""
    last = {line["left"]: number for number, line in enumerate(lines) if "left" in line}
    inside: defaultdict[str, set[str]] = defaultdict(set)
    for number, line in enumerate(lines):
        if line.get("workflow") != workflow:
            continue
        if "entered" in line:
            within = inside[line["key"]]
            within.add(line["entered"])
            if len(within) > most:
                yield f"{len(within)} runs of {workflow} {line['key']} at a time"
        elif "left" in line and last[line["left"]] == number:
            inside[line["key"]].discard(line["left"])


def _refusals(lines: list[dict[str, Any]], calls: list[Call], runs: list[Run]) -> Iterator[str]:
    """Nobody is refused unless all slots were taken at some instant of the call.

    A run holds its slot until its end is committed, which is later than the end it has on record, and told after
    that; of one whose process died before it told, nobody knows until when.
    """
    asked = {call.value: call for call in calls}
    settled = {line["settled"]: line["at"] for line in lines if "settled" in line}
    for line in lines:
        if "refused" not in line:
            continue
        call = asked[line["refused"]]
        if line["holding"] < FEW:
            yield f"start {call.value} was refused while {line['holding']} held a slot"
        held = [
            run
            for run in runs
            if (run.workflow, run.input["key"]) == ("refused", call.key)
            and millis(run.created_at) <= line["at"] + CLOCKS
            and settled.get(run.id, math.inf) >= call.asked - CLOCKS
        ]
        if len(held) < FEW:
            yield f"start {call.value} was refused, but only {len(held)} runs of {call.key} lived then"


def _rates(runs: list[Run]) -> Iterator[str]:
    """No more than so many begins in any window."""
    begins: defaultdict[str, list[int]] = defaultdict(list)
    for run in runs:
        if run.workflow == "throttled" and run.started_at is not None:
            begins[run.input["key"]].append(millis(run.started_at))
    for key, instants in begins.items():
        instants.sort()
        for first, beyond in zip(instants, instants[RATE:], strict=False):
            if beyond - first < WINDOW * 1000:
                yield f"{RATE + 1} throttled runs of {key} began within {beyond - first} ms, from {first}"


def _pending(calls: list[Call], runs: list[Run]) -> Iterator[str]:
    """One debounced draft per key at a time, and it begins with the input of the last start that it took.

    A draft is pending for sure from when its first caller was told of it until a worker decided to begin it: the
    instants it has on record are those of decisions, which a busy store may carry out much later.
    """
    drafts = [run for run in runs if run.workflow == "debounced"]
    told = {call.run: call.told for call in sorted(calls, key=_told_at, reverse=True) if call.told is not None}
    known = sorted((run for run in drafts if run.id in told), key=lambda run: told[run.id])
    latest: dict[str, Run] = {}
    for run in known:
        before, since = latest.get(run.input["key"]), told[run.id]
        if before is not None and began(before) > since + CLOCKS and began(run) > since + CLOCKS:
            yield f"two debounced drafts of {run.input['key']} at a time: {before.id}, {run.id}"
        if before is None or began(run) > began(before):
            latest[run.input["key"]] = run
    yield from _latest_input({call.value: call for call in calls}, {run.id: run for run in drafts})


def _told_at(call: Call) -> float:
    return math.inf if call.told is None else call.told


def _latest_input(calls: dict[int, Call], drafts: dict[str, Run]) -> Iterator[str]:
    """No start that was told of this run was asked for after that whose input it has was answered."""
    for call in calls.values():
        if call.run is None or call.run not in drafts:
            continue
        winner = calls[drafts[call.run].input["value"]]
        if winner.told is not None and call.asked > winner.told:
            yield f"run {call.run} has the input of start {winner.value}, not of the later {call.value}"


def began(run: Run) -> float:
    """When a run began, in milliseconds; never, if it has not."""
    return math.inf if run.started_at is None else millis(run.started_at)


def millis(instant: Any) -> int:
    """Milliseconds since the epoch."""
    return int(instant.timestamp(unit="millisecond"))
