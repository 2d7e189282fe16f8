"""Stories made by hand, for the tests of the checker: one run of one job, told in a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tests.chaos.records import (
    NEVER,
    Call,
    Did,
    Entered,
    Fault,
    Job,
    Left,
    Line,
    Outcome,
    Reply,
    Request,
    Retired,
    Seen,
    Stalled,
    Story,
    Stuck,
)

RUN = "r"
KEY = "job-0"


class Tale:
    """Gathers what happened. Until told otherwise the run is of process 1, and done at instant 10."""

    def __init__(self, shape: str = "slow", times: int = 1) -> None:
        self.shape = shape
        self.jobs = [Job(number=0, shape=shape, pace=0.1, times=times)]
        self.lines: list[Line] = []
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self.finals: list[Seen] = []
        self.exits: dict[int, int | None] = {1: 0, 2: 0}
        self.call("start", 0, 0.1, value=RUN, workflow=shape, key=KEY)

    def story(self) -> Story:
        if not self.finals:
            self.final()
        return Story(
            jobs=self.jobs,
            calls=self.calls,
            lines=self.lines,
            faults=self.faults,
            finals=self.finals,
            lease=1.5,
            poll=0.2,
            exits=self.exits,
        )

    def body(
        self,
        step: str,
        at: float,
        ended: float | None,
        how: Literal["returned", "failed", "unwound"] = "returned",
        *,
        entry: str = "",
        pid: int = 1,
        fence: int = 1,
        attempt: int = 1,
        generation: int = 0,
        run: str = RUN,
    ) -> Tale:
        """A call of a handler; without an end it never told of one. Its entry is the step's name."""
        entry = entry or step
        self.lines.append(
            Entered(
                entry=entry,
                run=run,
                step=step,
                generation=generation,
                attempt=attempt,
                fence=fence,
                pid=pid,
                at=at,
            )
        )
        if ended is not None:
            self.lines.append(Left(entry=entry, how=how, at=ended))
        return self

    def did(self, entry: str, what: str, value: object, at: float = 1.5) -> Tale:
        self.lines.append(Did(entry=entry, run=RUN, what=what, value=value, at=at))
        return self

    def call(
        self,
        verb: str,
        invoked: float,
        ended: float = NEVER,
        *,
        outcome: Outcome = "ok",
        value: Any = None,
        error: str = "",
        run: str = RUN,
        **asked: Any,
    ) -> Tale:
        number = len(self.calls)
        self.calls.append(
            Call(
                request=Request(id=number, verb=verb, job=0, run="" if verb == "start" else run, **asked),
                door="here",
                invoked=invoked,
                reply=Reply(id=number, outcome=outcome, value=value, error=error),
                ended=ended,
            )
        )
        return self

    def read(self, invoked: float, **fields: Any) -> Tale:
        return self.call("read", invoked, invoked + 0.1, value=self.seen(**fields))

    def seen(self, **fields: Any) -> Seen:
        given: dict[str, Any] = {
            "id": RUN,
            "job": 0,
            "workflow": self.shape,
            "key": KEY,
            "status": "done",
            "revision": 9,
            "fence": 9,
            "recoveries": 0,
            "paused": False,
            "leased": False,
            "created_at": 0.0,
            "ended_at": 10.0,
            "state": {"sets": 0, "rounds": 0},
        }
        return Seen(**given | fields)

    def final(self, *, outputs: Sequence[str] = (), **fields: Any) -> Tale:
        """The stored run; each of `outputs` is a step whose output names the body of the same name."""
        done = {step: {"entry": step, "value": None} for step in outputs}
        self.finals.append(self.seen(**{"done": done} | fields))
        return self

    def frozen(self, pid: int, since: float, until: float) -> Tale:
        self.faults.append(Fault(kind="frozen", pid=pid, since=since, until=until))
        return self

    def outage(self, since: float, until: float) -> Tale:
        self.faults.append(Fault(kind="outage", pid=0, since=since, until=until))
        return self

    def killed(self, pid: int, at: float) -> Tale:
        self.faults.append(Fault(kind="killed", pid=pid, since=at, until=at + 0.1))
        self.exits.pop(pid, None)
        return self

    def stalled(self, pid: int, since: float, until: float) -> Tale:
        self.lines.append(Stalled(pid=pid, since=since, until=until))
        return self

    def stuck(self, pid: int, since: float, until: float) -> Tale:
        self.lines.append(Stuck(pid=pid, since=since, until=until))
        return self

    def retired(self, pid: int, at: float) -> Tale:
        self.lines.append(Retired(pid=pid, at=at))
        return self


def answered(value: str) -> dict[str, Any]:
    """The outputs of a run that got this answer."""
    return {"ask": {"entry": "ask", "value": value}}


def listened(*values: str) -> dict[str, Any]:
    """The outputs of a run that received these signals."""
    return {"listen": {"entry": "listen", "value": list(values)}}
