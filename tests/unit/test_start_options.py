"""The options of a workflow about its starts: what is taken, what is refused, what is stored."""

from typing import Any

import pytest

from streamline_trio._core.definition import Workflow
from streamline_trio._core.errors import DefinitionError, ValidationError
from streamline_trio._core.signals import Signal
from streamline_trio._core.start_options import (
    CancelOn,
    CancelPlan,
    Concurrency,
    ConcurrencyPlan,
    Debounce,
    DebouncePlan,
    Throttle,
    ThrottlePlan,
    Trigger,
    call_key,
)


def odd(value: object) -> Any:
    """A value of a type that the signature does not allow."""
    return value


BAD: list[tuple[dict[str, Any], str]] = [
    ({"concurrency": 5}, "concurrency"),
    ({"concurrency": Concurrency(0)}, "limit"),
    ({"concurrency": Concurrency(True)}, "limit"),
    ({"concurrency": Concurrency(10_001)}, "limit"),
    ({"concurrency": Concurrency(1, key=odd("user"))}, "key"),
    ({"concurrency": Concurrency(1, when_full=odd("drop"))}, "when_full"),
    ({"throttle": Throttle(0, 1)}, "limit"),
    ({"throttle": Throttle(-1, 1)}, "limit"),
    ({"throttle": Throttle(1, 0)}, "window"),
    ({"throttle": Throttle(1, float("nan"))}, "window"),
    ({"throttle": Throttle(1, 1, key=odd(lambda: "k"))}, "key"),
    ({"debounce": Debounce(0)}, "window"),
    ({"debounce": Debounce(10, max_wait=5)}, "max_wait"),
    ({"throttle": Throttle(1, 1), "debounce": Debounce(1)}, "exclude"),
    ({"trigger": "signal"}, "trigger"),
    ({"trigger": Trigger("a name")}, "trigger"),
    ({"trigger": Trigger("s", input=odd(lambda: None))}, "input"),
    ({"trigger": Trigger("s", tenant=odd(3))}, "tenant"),
    ({"cancel_on": 3}, "cancel_on"),
    ({"cancel_on": [CancelOn("s", match=odd({"a": 1}))]}, "match"),
    ({"cancel_on": ["a name"]}, "cancel_on"),
]


@pytest.mark.parametrize(("options", "named"), BAD)
def test_a_bad_option_is_refused_by_name(options, named):
    """S293: Proves that what makes no sense is refused at definition, naming workflow and option."""
    with pytest.raises(DefinitionError, match=named) as refused:
        Workflow("orders", **options)
    assert "orders" in str(refused.value)


def test_what_is_stored_of_the_rules():
    """Proves that the plan holds limits, windows in seconds and names of signals, without any code."""
    paid = Signal("paid", int)
    workflow = Workflow(
        "orders",
        concurrency=Concurrency(3, key=lambda i: i["user"], when_full="reject"),
        throttle=Throttle(2, 60),
        trigger=[Trigger(paid), Trigger("ordered"), Trigger("paid")],
        cancel_on=["dropped", CancelOn(paid, match={"id": "order"})],
    )
    workflow.add_step("only", lambda _ctx: None)
    plan = workflow.seal()
    assert plan.concurrency == ConcurrencyPlan(limit=3, when_full="reject")
    assert plan.throttle == ThrottlePlan(limit=2, window=60.0)
    assert plan.debounce is None
    assert plan.triggered_by == ("ordered", "paid")
    assert plan.cancel_on == (CancelPlan(signal="dropped"), CancelPlan(signal="paid", match={"id": "order"}))
    quiet = Workflow("quiet", debounce=Debounce(1, max_wait=5))
    quiet.add_step("only", lambda _ctx: None)
    assert quiet.seal().debounce == DebouncePlan(window=1.0, max_wait=5.0)


def test_what_a_key_function_gives():
    """Proves that a bucket's key is a text or a number, and that what fails or gives something else is told."""
    assert call_key(None, {}, what="x") is None
    assert call_key(lambda i: i["user"], {"user": "u1"}, what="x") == "u1"
    assert call_key(lambda _i: 7, {}, what="x") == "7"
    for key in (lambda _i: None, lambda _i: "", lambda _i: True, lambda _i: "k" * 501, lambda i: i["user"]):
        with pytest.raises(ValidationError, match="the throttle of orders"):
            call_key(odd(key), {}, what="the throttle of orders")
