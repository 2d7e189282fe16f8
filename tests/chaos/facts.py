"""The story, ordered so that laws can ask it: bodies with their ends, excuses of processes, calls by run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from tests.chaos.records import NEVER, Call, Did, Died, Entered, Job, Left, Retired, Seen, Stalled, Story, Stuck
from tests.chaos.workflows import SHIELDED

GRACE = 1.0
"""Seconds within which a worker that has come back stops what it may not go on with, on a machine under load."""

SLACK = 0.3
"""Seconds by which two processes may write the same instant down differently."""

UNSTOPPABLE = {"hide": SHIELDED, "block": SHIELDED}
"""Steps whose bodies cannot be cancelled, and how long they take at most."""


@dataclass(frozen=True)
class Body:
    """One call of a handler; `how` is empty if it did not live to tell."""

    entered: Entered
    ended: float
    how: str

    @property
    def at(self) -> float:
        return self.entered.at

    @property
    def fence(self) -> int:
        return self.entered.fence

    @property
    def pid(self) -> int:
        return self.entered.pid

    def __str__(self) -> str:
        begun = self.entered
        generation = f"~{begun.generation}" if begun.generation else ""
        return (
            f"{begun.run} {begun.step}{generation} attempt {begun.attempt} under fence {begun.fence}"
            f" (body {begun.entry}, {begun.at:.3f} to {self.ended:.3f})"
        )


class Facts:
    """Indexes over one story."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.jobs: dict[int, Job] = {job.number: job for job in story.jobs}
        self.finals: dict[str, Seen] = {final.id: final for final in story.finals}
        self.deaths: dict[int, float] = {}
        self._still: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        self._retired: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        self._stuck: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        self._outages: list[tuple[float, float]] = []
        self._gather_processes()
        self.bodies: dict[str, list[Body]] = {}
        self._gather_bodies()
        self.did: defaultdict[str, list[Did]] = defaultdict(list)
        for line in story.lines:
            if isinstance(line, Did):
                self.did[line.run].append(line)
        self.calls: defaultdict[str, list[Call]] = defaultdict(list)
        self.starts: defaultdict[str, list[Call]] = defaultdict(list)
        for call in sorted(story.calls, key=lambda call: call.invoked):
            if call.request.verb == "start":
                self.starts[call.request.key].append(call)
            else:
                self.calls[call.request.run].append(call)

    def _gather_processes(self) -> None:
        for fault in self.story.faults:
            if fault.kind == "outage":
                self._outages.append((fault.since, fault.until))
            elif fault.kind == "frozen":
                self._still[fault.pid].append((fault.since, fault.until))
            else:
                end = fault.since if fault.kind == "killed" else fault.until
                self.deaths[fault.pid] = min(end, self.deaths.get(fault.pid, NEVER))
        for line in self.story.lines:
            match line:
                case Died():
                    self.deaths[line.pid] = min(line.at, self.deaths.get(line.pid, NEVER))
                case Stalled():
                    self._still[line.pid].append((line.since, line.until))
                case Stuck():
                    self._stuck[line.pid].append((line.since, line.until))
                case Retired():
                    self._retired[line.pid].append((line.at - self.story.lease, line.at))
                case _:
                    pass

    def _gather_bodies(self) -> None:
        left = {line.entry: line for line in self.story.lines if isinstance(line, Left)}
        begun = [line for line in self.story.lines if isinstance(line, Entered)]
        for line in sorted(begun, key=lambda line: line.at):
            end = left.get(line.entry)
            ended = self.deaths.get(line.pid, NEVER) if end is None else end.at
            body = Body(line, max(ended, line.at), "" if end is None else end.how)
            self.bodies.setdefault(line.run, []).append(body)

    # --- questions -----------------------------------------------------------------------------------------

    def bodies_of(self, run: str) -> list[Body]:
        """In the order of their beginning."""
        return self.bodies.get(run, [])

    def body(self, run: str, entry: str) -> Body | None:
        return next((body for body in self.bodies_of(run) if body.entered.entry == entry), None)

    def verbs(self, run: str, *verbs: str) -> list[Call]:
        """Calls of these verbs on the run, in the order of their beginning, but those that were refused."""
        return [c for c in self.calls[run] if c.request.verb in verbs and c.outcome != "fail"]

    def acknowledged(self, run: str, *verbs: str) -> list[Call]:
        return [call for call in self.verbs(run, *verbs) if call.outcome == "ok"]

    def reads(self, run: str) -> Iterator[tuple[Call, Seen]]:
        for call in self.acknowledged(run, "read"):
            yield call, msgspec.convert(call.reply.value, Seen)

    def _excuses(self, pid: int) -> list[tuple[float, float]]:
        """When the process stood still, and the leases that its worker has lost."""
        return sorted([*self._still[pid], *self._retired[pid]])

    def was_retried(self, run: str) -> bool:
        return bool(self.verbs(run, "retry"))

    def is_excused(self, pid: int, at: float) -> bool:
        """Whether the process was standing still then, or had only just come back."""
        return any(since <= at <= until + GRACE for since, until in self._excuses(pid))

    def was_held_up(self, pid: int, begin: float, end: float) -> bool:
        """Whether at some time between the two it stood still, or could not reach the store."""
        held_up = [*self._still[pid], *self._stuck[pid], *self._outages]
        return any(since <= end and until >= begin for since, until in held_up)

    def must_end_by(self, body: Body, replaced_at: float) -> float:
        """Until when the body may go on, once its run is somebody else's or nobody's."""
        limit = replaced_at + SLACK
        for since, until in self._excuses(body.pid):
            if since <= limit:
                limit = max(limit, until + GRACE)
        return limit + UNSTOPPABLE.get(body.entered.step, 0.0)
