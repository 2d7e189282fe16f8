"""What throttle and debounce have to do with a start: before its insert, and after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import trio

from streamline_trio._core.decide import StartRequest, decide
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import Origin, RunDoc, debounce_key
from streamline_trio._core.errors import StreamlineError, ValidationError
from streamline_trio._core.happenings import Claimed
from streamline_trio._core.start_options import KeyFunction, call_key
from streamline_trio._core.store import Applied, Update
from streamline_trio._core.throttling import bucket_name, want_of
from streamline_trio._runtime.committer import Outcome
from streamline_trio._runtime.services import Services
from streamline_trio._runtime.slot_wishes import slot_for
from streamline_trio._runtime.throttles import happening_of

if TYPE_CHECKING:
    from streamline_trio._runtime.machinery import Machinery
    from streamline_trio._runtime.starting import StartOptions


def paced(request: StartRequest, workflow: Workflow[Any, Any], *, attended: bool = False) -> StartRequest:
    """The request with the bucket of its throttle; every insert of a new run goes through here.

    `attended`: whoever inserts the run sees to its slot (`enter`); else it is due at once and the worker that finds
    it does.
    """
    name = throttle_of(workflow, request.origin)
    if not name:
        return request
    return msgspec.structs.replace(request, throttle=name, attended=attended and request.start_at is None)


def throttle_of(workflow: Workflow[Any, Any], origin: Origin) -> str:
    """The bucket in which a run has to pass; empty if its workflow has no throttle."""
    rate = workflow.rules.throttle
    if rate is None:
        return ""
    return bucket_name(origin.tenant, origin.workflow, _key(rate.key, origin, workflow, "throttle"))


def gated(services: Services, workflow: Workflow[Any, Any], run: RunDoc, claim: Claimed) -> Claimed:
    """The claim; of a draft that was stored before its workflow had a limit it names what the draft has to pass."""
    head, rules = run.head, workflow.rules
    if head.status != "draft":
        return claim
    if rules.throttle is not None and head.throttle is None:
        claim = msgspec.structs.replace(claim, throttle=throttle_of(workflow, run.origin))
    if rules.concurrency is not None and head.slot is None:
        slot = slot_for(services, workflow, run.origin)
        assert slot is not None, "the workflow has a limit"
        since = max(run.origin.created_at, head.start_at or 0) * 1000
        claim = msgspec.structs.replace(claim, slot=msgspec.structs.replace(slot, state="queued", ticket=since))
    return claim


def debounced(request: StartRequest, workflow: Workflow[Any, Any]) -> StartRequest:
    """The request with the key of its debounce."""
    quiet = workflow.rules.debounce
    if quiet is None:
        return request
    origin = request.origin
    name = debounce_key(origin.tenant, origin.workflow, _key(quiet.key, origin, workflow, "debounce"))
    return msgspec.structs.replace(request, debounce=name)


def _key(key: KeyFunction | None, origin: Origin, workflow: Workflow[Any, Any], what: str) -> str | None:
    if key is None:
        return None
    value = workflow.input_decoder.decode(origin.input, what="input")
    return call_key(key, value, what=f"the {what} of workflow {workflow.id}")


def check_debounced(workflow: Workflow[Any, Any], options: StartOptions) -> None:
    """Several starts become one run: it can have neither the key of each nor the time of each."""
    if workflow.rules.debounce is None:
        return
    for option in ("idempotency_key", "delay", "run_at"):
        if getattr(options, option) is not None:
            raise ValidationError(f"start of {workflow.id}: a debounced start takes no {option}")


def enter_soon(machinery: Machinery, run: RunDoc, workflow: Workflow[Any, Any]) -> trio.Event | None:
    """See to the slot of a run that was just inserted, also if its starter is gone; set once that is done.

    None if there is nothing to see to.
    """
    if run.head.throttle is None or run.head.throttle.slot_at is None:
        return None
    done = trio.Event()
    machinery.services.spawn(lambda: _enter(machinery, run, workflow, done))
    return done


async def _enter(machinery: Machinery, run: RunDoc, workflow: Workflow[Any, Any], done: trio.Event) -> None:
    """Ask the throttle, and begin the run here or tell it its slot.

    Whatever goes wrong, the run is stored and falls due soon: then a worker asks.
    """
    services, crew, run_id = machinery.services, machinery.crew, run.origin.id
    worker = machinery.worker.id if machinery.is_worker else None
    reserved = worker is not None and not machinery.claimer.is_behind and crew.try_reserve(run_id)
    told = trio.Event()
    posted = False
    try:
        want, throttle = want_of(run, workflow.plan, now=reserved), run.head.throttle
        assert want is not None, "it was inserted with a throttle"
        assert throttle is not None, "it was inserted with a throttle"
        (answer,) = await machinery.claimer.throttles.ask(throttle.bucket, [want])
        happening = happening_of(answer, Claimed(worker=worker or ""))
        assert happening is not None, "there was an answer"
        decision = decide(run, happening, workflow.plan, services.clock.now(), services.chance.commit_id())

        def tell(outcome: Outcome) -> None:
            applied = isinstance(outcome, Applied)
            if applied:
                services.committed(decision.run, (decision,))
            if applied and decision.run.head.lease is not None:
                crew.drive(decision.run, workflow)
            elif reserved:
                crew.cancel_reservation(run_id)
            told.set()

        posted = True
        services.committer.post(Update(run, decision.run, decision.touched), tell)
        await told.wait()
    except StreamlineError as error:
        services.logger.warning("run %s has to wait for its slot: %s", run_id, error)
    finally:
        if reserved and not posted:
            crew.cancel_reservation(run_id)
        done.set()
