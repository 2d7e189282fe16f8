"""Carries out a request on an engine, whichever process it lives in, and says what came of it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import trio

from streamline_trio import (
    Engine,
    InvalidState,
    Run,
    RunNotFound,
    StoreUnavailable,
    StreamlineError,
    TokenInvalid,
)
from tests.chaos.records import Job, Outcome, Reply, Request, Seen

LONGEST = 12.0
CLOSED = "closed"
"""The error of a call through an engine that was being left: it did not happen, and says nothing of the run."""


async def perform(engine: Engine, request: Request) -> Reply:
    """What the engine answers; an unexpected error is told as such, and is for the checker."""
    outcome: Outcome = "info"
    value: Any = None
    error = f"no answer within {LONGEST:g} s"
    with trio.move_on_after(LONGEST):
        try:
            value = await _ask(engine, request)
            outcome, error = "ok", ""
        except StoreUnavailable as doubt:
            error = str(doubt)
        except (InvalidState, TokenInvalid, RunNotFound) as refusal:
            outcome = "fail"
            error = CLOSED if getattr(refusal, "action", "") == "write" else refusal.code
        except StreamlineError as surprise:
            error = f"unexpected: {surprise!r}"
    return Reply(id=request.id, outcome=outcome, value=value, error=error)


async def _ask(engine: Engine, request: Request) -> Any:
    if request.verb == "start":
        job = msgspec.convert(request.payload, Job)
        return (await engine.start(request.workflow, job, idempotency_key=request.key)).id
    if request.verb == "read":
        return msgspec.to_builtins(seen(await engine.get(request.run)))
    await _VERBS[request.verb](engine, request)
    return None


_VERBS: dict[str, Callable[[Engine, Request], Awaitable[None]]] = {
    "resume": lambda engine, asked: engine.resume(asked.token, asked.payload),
    "answer": lambda engine, asked: engine.run(asked.run).resume(asked.payload),
    "emit": lambda engine, asked: engine.emit(asked.signal, asked.payload, run=asked.run, id=asked.payload),
    "broadcast": lambda engine, asked: engine.emit(asked.signal, asked.payload, id=asked.payload),
    "cancel": lambda engine, asked: engine.run(asked.run).cancel("the client asked"),
    "pause": lambda engine, asked: engine.run(asked.run).pause(),
    "unpause": lambda engine, asked: engine.run(asked.run).unpause(),
    "retry": lambda engine, asked: engine.run(asked.run).retry(),
}


def seen(run: Run) -> Seen:
    """The run as the checker knows it, its instants on the monotonic clock."""
    ahead = time.time() - time.monotonic()
    current = run.steps.get(run.current_step or "")
    wait = None if current is None else current.wait
    return Seen(
        id=run.id,
        job=_job_of(run.input),
        workflow=run.workflow,
        key=run.idempotency_key or "",
        status=run.status,
        revision=run.revision,
        fence=run.fence,
        recoveries=run.recoveries,
        paused=run.paused,
        leased=run.lease is not None,
        waits_for="" if wait is None else wait.signal or wait.kind,
        error="" if run.error is None else run.error.code,
        created_at=run.created_at.timestamp(unit="millisecond") / 1000 - ahead,
        ended_at=None if run.ended_at is None else run.ended_at.timestamp(unit="millisecond") / 1000 - ahead,
        state=msgspec.to_builtins(run.state),
        done={step.id: step.output for step in run.steps.values() if step.status == "done"},
        attempts={step.id: step.attempts for step in run.steps.values()},
        skipped=[step.id for step in run.steps.values() if step.status == "skipped"],
    )


def _job_of(given: Any) -> int:
    return given.number if isinstance(given, Job) else int(given["number"])
