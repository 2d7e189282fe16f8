"""A run told as a story: what happens to it, one happening after the other, each decided on the last."""

from typing import Any, Self, TypeVar

import msgspec

from streamline_trio._core import payload
from streamline_trio._core.decide import StartRequest, admit, decide
from streamline_trio._core.documents import ErrorDoc, Origin, Record, RunDoc
from streamline_trio._core.happenings import (
    Answered,
    Ask,
    AttemptFailed,
    Claimed,
    Finished,
    HandedBack,
    Happening,
    Held,
    SignalArrived,
    Suspended,
    WaitOpened,
)
from streamline_trio._core.plan import Plan, StepPlan, make_plan
from streamline_trio._core.retry import RetryPolicy

T0 = 1_000_000
BOOM = ErrorDoc(code="workflow.step.failed", message="boom", type="ValueError", step="a")
H = TypeVar("H", bound=Held)


def pack(value: object) -> bytes:
    return payload.encode(value, what="a value of a test")


def unpack(value: bytes | None) -> Any:
    return None if value is None else msgspec.msgpack.decode(value)


def plan_of(
    steps: str = "abc", *, timeout: float | None = None, attempts: int = 3, delay: float = 1.0, version: str = "1"
) -> Plan:
    """Steps named by one letter each; no jitter, so that retries have exact times."""
    policy = RetryPolicy(attempts=attempts, delay=delay, jitter=0.0)
    parts = tuple(StepPlan(id=step, retry=policy) for step in steps)
    return make_plan(workflow="w", version=version, steps=parts, timeout=timeout, max_step_logs=1000)


def timer(due_at: int, key: str = "timer#0", place: int = 0) -> Ask:
    return Ask(key=key, kind="timer", ask="timer", place=place, due_at=due_at)


def human(
    reason: str = "approve", *, key: str = "human#0", token: str | None = None, place: int = 0, **fields: Any
) -> Ask:
    return Ask(key=key, kind="human", ask=f"human\n{reason}", place=place, reason=reason, token=token, **fields)


def waits_for(signal: str = "s", *, key: str = "signal#0", place: int = 0, **fields: Any) -> Ask:
    return Ask(key=key, kind="signal", ask=f"signal\n{signal}", place=place, signal=signal, **fields)


class Story:
    """The run so far, the plan it follows, the time; `events` are those of the last happening."""

    def __init__(
        self,
        plan: Plan | str = "abc",
        *,
        draft: bool = False,
        start_at: int | None = None,
        now: int = T0,
        **origin: Any,
    ) -> None:
        self.plan = plan if isinstance(plan, Plan) else plan_of(plan)
        self.now = now
        self.commit = 0
        fields: dict[str, Any] = {"id": "r1", "created_at": now, "input": pack({"n": 1}), **origin}
        told = StartRequest(
            origin=Origin(workflow=self.plan.workflow, start_id=7, **fields),
            state=pack({"n": 1}),
            start_at=start_at,
        )
        decision = admit(told, self.plan, now, None if draft else "w1")
        self.run: RunDoc = decision.run
        self.facts: tuple[Any, ...] = decision.events

    # --- telling -------------------------------------------------------------------------------------------

    def does(self, happening: Happening) -> Self:
        """Let it happen; what it raises leaves the story where it was."""
        self.commit += 1
        decision = decide(self.run, happening, self.plan, self.now, self.commit)
        self.run, self.facts = decision.run, decision.events
        return self

    def held(self, kind: type[H], **fields: Any) -> Self:
        """Let the present holder do it."""
        return self.does(self.by_holder(kind, **fields))

    def by_holder(self, kind: type[H], **fields: Any) -> H:
        """A happening under the present lease; about the current step unless told otherwise."""
        lease = self.run.head.lease
        assert lease is not None, "nobody holds the run"
        if "step" in kind.__struct_fields__:
            fields.setdefault("step", self.run.head.current_step)
        return kind(worker=lease.worker, fence=lease.fence, **fields)

    def later(self, seconds: float) -> Self:
        self.now += round(seconds * 1000)
        return self

    def at_due(self) -> Self:
        """Let the time come at which the run wants a worker."""
        assert self.head.due_at is not None, "it waits for the outside"
        self.now = max(self.now, self.head.due_at)
        return self

    def claims(self, worker: str = "w1") -> Self:
        return self.does(Claimed(worker=worker))

    def takes_over(self, worker: str = "w2", max_recoveries: int = 5) -> Self:
        return self.does(Claimed(worker=worker, lease_dead=True, max_recoveries=max_recoveries))

    def finishes(self, value: object = None, *, release: bool = False) -> Self:
        return self.held(Finished, output=pack(value), release=release)

    def fails(self, error: ErrorDoc = BOOM, *, retriable: bool = True, release: bool = False) -> Self:
        return self.held(AttemptFailed, error=error, retriable=retriable, release=release)

    def suspends(self, *asks: Ask, release: bool = False) -> Self:
        return self.held(Suspended, asks=asks, release=release)

    def opens(self, ask: Ask) -> Self:
        return self.held(WaitOpened, ask=ask)

    def hands_back(self) -> Self:
        return self.held(HandedBack)

    def answers(self, value: object = True, **fields: Any) -> Self:
        return self.does(Answered(payload=pack(value), **fields))

    def hears(self, signal: str = "s", value: object = None, *, id: str = "m1", addressed: bool = True) -> Self:
        return self.does(SignalArrived(signal=signal, payload=pack(value), id=id, addressed=addressed))

    # --- looking -------------------------------------------------------------------------------------------

    @property
    def head(self) -> Any:
        return self.run.head

    @property
    def status(self) -> str:
        return self.run.head.status

    @property
    def events(self) -> list[str]:
        return [event.name for event in self.facts]

    def step(self, step_id: str | None = None) -> Any:
        return self.run.step(step_id or self.run.head.current_step or "")

    def record(self, key: str) -> Record:
        return self.run.records[key]

    @property
    def statuses(self) -> str:
        """The status of every step of the plan, in order."""
        return " ".join(self.run.step(step.id).status for step in self.plan.steps)
