"""Saying how a step is undone: what is taken, what is refused, and what is stored of it."""

from datetime import timedelta
from typing import Any

import pytest

from streamline_trio import DefinitionError, StepContext, Workflow
from streamline_trio._core.plan import CompensationPlan
from streamline_trio._core.retry import RetryPolicy


def undo(ctx: Any) -> str:
    """Stands for any compensation."""
    return f"undone {ctx}"


def workflow_of_one(**options: Any) -> Any:
    workflow: Workflow[Any, Any] = Workflow("order", **options)
    return workflow, workflow.add_step("charge", undo)


def test_the_defaults():
    """Proves that a bare decorator stores three attempts, a second apart at first, and no limit."""
    workflow, charge = workflow_of_one()
    assert charge.plan.compensation is None
    assert charge.compensate(undo) is undo
    stored = workflow.seal().step("charge").compensation
    assert stored == CompensationPlan(retry=RetryPolicy(attempts=3, delay=1.0, factor=2.0), when="finished")
    assert workflow.plan.compensations == {"charge": stored}
    assert not workflow.plan.compensate_on_cancel


def test_every_option():
    """Proves that options reach the stored plan in their final form."""
    workflow, charge = workflow_of_one(compensate_on_cancel=True)
    decorate = charge.compensate(
        attempts=7,
        retry_delay=timedelta(seconds=5),
        backoff="fixed",
        max_retry_delay=9,
        jitter=0,
        timeout=timedelta(minutes=1),
        when="started",
    )
    assert decorate(undo) is undo
    stored = workflow.seal().step("charge").compensation
    retry = RetryPolicy(attempts=7, delay=5.0, factor=1.0, max_delay=9.0, jitter=0.0)
    assert stored == CompensationPlan(retry=retry, timeout=60.0, when="started")
    assert workflow.plan.compensate_on_cancel


def test_both_stay_callable():
    """Proves that unit tests call the step and its compensation as what they are."""
    _, charge = workflow_of_one()
    refund = charge.compensate(undo)
    assert (charge("x"), refund("y")) == ("undone x", "undone y")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("attempts", 0),
        ("attempts", 1001),
        ("attempts", "3"),
        ("retry_delay", -1),
        ("backoff", "cubic"),
        ("max_retry_delay", -1),
        ("jitter", 2),
        ("timeout", 0),
        ("when", "sometimes"),
        ("when", ["finished"]),
        ("retry_on", ValueError),
        ("skip_if", None),
        ("atempts", 3),
    ],
)
def test_what_is_refused(option, value):
    """Proves that each bad option is refused, naming workflow, step and option."""
    _, charge = workflow_of_one()
    with pytest.raises(DefinitionError, match="compensation") as caught:
        charge.compensate(**{option: value})(undo)
    assert {"workflow": "order", "step": "charge", "option": option}.items() <= caught.value.meta.items()
    assert charge.compensation is None


@pytest.mark.parametrize("handler", [None, 7, int, lambda: None, lambda _a, _b: None])
def test_what_is_no_handler(handler):
    """Proves that a compensation is a function of one argument."""
    _, charge = workflow_of_one()
    with pytest.raises(DefinitionError, match="charge"):
        charge.compensate(handler)


def test_once_and_in_time():
    """Proves that a second compensation is refused, and any after the workflow is sealed."""
    workflow, charge = workflow_of_one()
    charge.compensate(undo)
    with pytest.raises(DefinitionError, match=r"order.*charge.*already"):
        charge.compensate(undo)
    other = workflow.add_step("other", undo)
    workflow.seal()
    with pytest.raises(DefinitionError, match=r"order.*other.*sealed"):
        other.compensate(undo)


def test_compensate_on_cancel_is_a_truth():
    """Proves that the workflow's option is checked."""
    with pytest.raises(DefinitionError, match="compensate_on_cancel"):
        Workflow("order", compensate_on_cancel="yes")  # type: ignore[call-overload]  # what is wrong is the point


def test_a_plan_without_compensations_keeps_its_fingerprint():
    """Proves that only who compensates has another fingerprint than before."""
    plain, _ = workflow_of_one()
    undoable, charge = workflow_of_one()
    charge.compensate(undo)
    cancelling, _ = workflow_of_one(compensate_on_cancel=True)
    prints = {workflow.seal().fingerprint for workflow in (plain, undoable, cancelling)}
    assert len(prints) == 3


def test_its_context_says_what_the_state_is():
    """Proves that a compensation annotated with another state than the steps is refused."""
    workflow: Workflow[Any, Any] = Workflow("order", state=lambda _given: {"n": 1})

    async def charge(ctx: StepContext[Any, dict[str, int]]) -> None:
        """Stands for any step."""

    async def refund(ctx: StepContext[Any, list[int]]) -> None:
        """Stands for a compensation that was written for something else."""

    workflow.step(charge).compensate(refund)
    with pytest.raises(DefinitionError, match=r"charge.*charge \(its compensation\)"):
        workflow.seal()
