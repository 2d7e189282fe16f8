"""Step options: what is taken, what is refused, and which failures are tried again."""

# ruff: noqa: ARG005 - stand-ins have the parameters of their protocol

import functools
from datetime import timedelta
from typing import Any

import pytest

from streamline_trio._core.definition import Workflow
from streamline_trio._core.errors import (
    ChildFailed,
    DefinitionError,
    GuardRefused,
    JoinFailed,
    LoopLimitExceeded,
    NonRetriable,
    OutputMissing,
    PayloadTooLarge,
    StepTimeout,
    StreamlineError,
    SuspensionError,
    SuspensionMismatch,
    ValidationError,
    WaitTimedOut,
    WaitWithdrawn,
)
from streamline_trio._core.options import StepOptions, StepSpec
from streamline_trio._core.retry_on import RetryOn

ANSWERS = [WaitTimedOut, WaitWithdrawn, ChildFailed, JoinFailed, ValidationError]
NEVER = [
    DefinitionError,
    SuspensionError,
    SuspensionMismatch,
    PayloadTooLarge,
    LoopLimitExceeded,
    GuardRefused,
    NonRetriable,
]


def handler(ctx):
    return None


async def _later(error):
    return True


def _options(**options):
    return Workflow("w").add_step("s", handler, **options).options


def test_every_option_reaches_the_step():
    """Proves that each option is taken, durations as numbers or timedeltas."""

    def free(state):
        return True

    options = _options(
        attempts=5,
        retry_delay=timedelta(seconds=2),
        backoff=3,
        max_retry_delay=90,
        jitter=0,
        retry_on=(OSError, KeyError),
        timeout=timedelta(minutes=1),
        skip_if=free,
        run_if=None,
        max_payload_bytes=1000,
    )
    assert (options.attempts, options.retry_delay, options.backoff) == (5, 2.0, 3.0)
    assert (options.max_retry_delay, options.jitter, options.timeout) == (90.0, 0.0, 60.0)
    assert options.retry_on.rule == (OSError, KeyError)
    assert (options.skip_if, options.run_if, options.max_payload_bytes) == (free, None, 1000)


def test_built_in_options():
    """S048: proves what holds for a step that says nothing."""
    options = _options()
    assert (options.timeout, options.skip_if, options.run_if, options.max_payload_bytes) == (None,) * 4
    assert options.retry_on.rule is Exception


def test_the_step_wins_over_the_workflow_and_none_counts_as_said():
    """S047: proves the order step, workflow defaults, built-in, also for an explicit None."""
    workflow = Workflow("w", defaults=StepOptions(timeout=5, attempts=9, retry_on=OSError), max_payload_bytes=10)
    silent = workflow.add_step("silent", handler).options
    spoken = workflow.add_step("spoken", handler, timeout=None, attempts=1, max_payload_bytes=None).options
    assert (silent.timeout, silent.attempts, silent.max_payload_bytes) == (5.0, 9, 10)
    assert silent.retry_on.rule is OSError
    assert (spoken.timeout, spoken.attempts, spoken.max_payload_bytes) == (None, 1, None)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("attempts", bad) for bad in (0, -1, 1001, 2.0, True, "3", None)],
        *[("retry_delay", bad) for bad in (-1, float("nan"), float("inf"), 366 * 86_400 + 1, "1", None, True)],
        *[("max_retry_delay", bad) for bad in (-0.5, 367 * 86_400, timedelta(days=-1))],
        *[("backoff", bad) for bad in ("quadratic", 0.5, float("inf"), True, None)],
        *[("jitter", bad) for bad in (-0.1, 1.1, float("nan"), True, "0.3", None)],
        *[("timeout", bad) for bad in (0, -1, float("inf"), "30", True, timedelta(0))],
        *[("max_payload_bytes", bad) for bad in (0, -1, 1.5, True, "1")],
        *[("skip_if", bad) for bad in ("status", True, lambda: True, lambda one, two: True)],
        *[("run_if", bad) for bad in (1, lambda: True)],
        *[("retry_on", bad) for bad in ("OSError", int, BaseException, (OSError, int), OSError("x"), None, _later)],
        *[("returns", bad) for bad in (lambda ctx: None, complex)],
        *[("atempts", 3), ("keep_outputs", -1), ("", 1)],
        *[("id", bad) for bad in ("", "a b", "x" * 101, 5, None, "é")],
    ],
)
@pytest.mark.parametrize("way", ["decorator", "spec"])
def test_a_bad_option_is_refused_by_name(option, value, way):
    """Proves that every bad value is refused at definition time, naming workflow, step and option."""
    workflow = Workflow("order-flow")

    def define():
        if way == "decorator":
            options: dict[str, Any] = {"id": "charge", option: value}
            workflow.step(**options)(handler)
        else:
            Workflow("order-flow", steps={"charge": StepSpec(handler, **{option: value})})

    with pytest.raises(DefinitionError, match="workflow 'order-flow'") as caught:
        define()
    assert caught.value.meta["workflow"] == "order-flow"
    assert caught.value.meta["option"] == option
    if option != "id":
        assert "step 'charge'" in str(caught.value)
        assert caught.value.meta["step"] == "charge"
    if option not in {"id", "returns", "atempts", "keep_outputs", ""}:
        assert repr(value[1] if isinstance(value, tuple) else value) in str(caught.value)
    assert not workflow.steps


def test_an_unknown_option_hints_at_a_near_one():
    """Proves that a misspelt option is told together with the likely one."""
    with pytest.raises(DefinitionError, match="'retry_delay' is meant"):
        _options(retry_dealy=3)


@pytest.mark.parametrize("given", [{"attempts": 0}, {"nope": 1}, {"id": "x"}, {"returns": int}])
def test_bad_defaults_are_refused_by_the_workflow(given):
    """Proves that defaults are checked when a workflow takes them, and cannot hold a step's own options."""
    with pytest.raises(DefinitionError, match=r"workflow 'order-flow', option '(attempts|nope|id|returns)'"):
        Workflow("order-flow", defaults=StepOptions(**given))


def test_defaults_must_be_step_options():
    """Proves that a plain mapping is not taken for defaults."""
    plain: Any = {"attempts": 3}
    with pytest.raises(DefinitionError, match="option 'defaults'"):
        Workflow("order-flow", defaults=plain)


def test_specs_and_options_show_what_was_given():
    """Proves that both containers read well in a debugger."""
    assert repr(StepOptions(attempts=5, timeout=3)) == "StepOptions(attempts=5, timeout=3)"
    assert repr(StepSpec(len)) == "StepSpec(<built-in function len>)"
    assert repr(RetryOn(OSError)) == "RetryOn(<class 'OSError'>)"


def test_ordinary_errors_are_retried():
    """Proves that by default accidents are tried again, ours among them."""
    rule = RetryOn(Exception)
    for error in (ValueError("x"), StepTimeout("late"), OutputMissing("no output"), StreamlineError("x")):
        assert rule.allows(error)


def test_only_the_named_types_are_retried():
    """Proves that a type or tuple of types lets nothing else through."""
    rule = RetryOn((OSError, KeyError))
    assert rule.allows(ConnectionError("x"))
    assert rule.allows(KeyError("x"))
    assert not rule.allows(ValueError("x"))
    assert not RetryOn(()).allows(ValueError("x"))


@pytest.mark.parametrize("kind", NEVER)
@pytest.mark.parametrize("rule", [Exception, StreamlineError, lambda error: True], ids=["any", "ours", "ask"])
def test_what_cannot_succeed_is_never_retried(kind, rule):
    """Proves that no rule, even one that names the class, retries what a retry cannot mend."""
    assert not RetryOn(rule).allows(kind("x"))
    assert not RetryOn(kind).allows(kind("x"))


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_is_retried_only_by_name(kind):
    """Proves that a refused wait, child, join or value is asked again only when `retry_on` says so."""
    for general in (Exception, StreamlineError, (Exception, OSError)):
        assert not RetryOn(general).allows(kind("x"))
    assert RetryOn(kind).allows(kind("x"))
    assert RetryOn((OSError, kind)).allows(kind("x"))
    assert RetryOn(lambda error: isinstance(error, kind)).allows(kind("x"))
    others = tuple(other for other in ANSWERS if other is not kind)
    assert not RetryOn((Exception, *others)).allows(kind("x"))


def test_an_answer_of_the_users_own_class_is_retried_by_that_class():
    """Proves that naming any specific base of an answer is naming it."""

    class Stubborn(Exception):
        pass

    class MyTimeout(WaitTimedOut, Stubborn):
        pass

    assert RetryOn(Stubborn).allows(MyTimeout("x"))
    assert not RetryOn(Stubborn).allows(WaitTimedOut("x"))


def test_a_marked_error_is_never_retried():
    """S053: proves that `retriable = False` on any error wins over the rule."""

    class Declined(Exception):
        retriable = False

    for rule in (Exception, Declined, lambda error: True):
        assert not RetryOn(rule).allows(Declined("x"))


def test_a_group_is_retried_when_every_member_is():
    """Proves that one member which may not be retried decides for its group, at any depth."""
    rule = RetryOn((OSError, KeyError))
    good = ExceptionGroup("o", [OSError("x"), ExceptionGroup("i", [KeyError("y")])])
    assert rule.allows(good)
    assert not rule.allows(ExceptionGroup("o", [good, ValueError("z")]))
    assert not rule.allows(ExceptionGroup("o", [good, NonRetriable("z")]))
    assert not RetryOn(Exception).allows(ExceptionGroup("o", [OSError("x"), WaitTimedOut("late")]))


def test_a_rule_that_names_groups_takes_them_whole():
    """Proves that naming ExceptionGroup retries groups of accidents, but nothing never to be retried."""
    rule = RetryOn(ExceptionGroup)
    assert rule.allows(ExceptionGroup("o", [ValueError("x")]))
    assert not rule.allows(ValueError("x"))
    assert not rule.allows(ExceptionGroup("o", [GuardRefused("x")]))
    assert not rule.allows(ExceptionGroup("o", [WaitTimedOut("x")]))


def test_what_is_not_an_exception_is_never_retried():
    """Proves that interrupts, alone or in a group, are no failures to try again."""
    for rule in (Exception, lambda error: True):
        assert not RetryOn(rule).allows(KeyboardInterrupt())
        assert not RetryOn(rule).allows(BaseExceptionGroup("o", [KeyboardInterrupt(), ValueError("x")]))


def test_a_predicate_is_asked():
    """Proves that a predicate decides by the error at hand."""
    rule = RetryOn(lambda error: "busy" in str(error))
    assert rule.allows(ValueError("busy"))
    assert not rule.allows(ValueError("broken"))


def test_a_predicate_that_raises_allows_nothing():
    """Proves that a broken predicate fails the step instead of the engine, and is told on the error."""
    error = ValueError("x")
    assert not RetryOn(lambda error: vars(error)["status"] == 503).allows(error)
    assert error.__notes__ == ["not retried: its retry_on raised KeyError('status')"]


def test_an_async_predicate_is_refused():
    """Proves that a predicate nobody would await is refused, also behind a partial."""
    for rule in (_later, functools.partial(_later)):
        with pytest.raises(DefinitionError, match="async"):
            _options(retry_on=rule)
