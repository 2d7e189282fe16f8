"""The tree of errors, and what is stored of a failure."""

import copy
import inspect
import pickle

import pytest

from streamline_trio._core import errors
from streamline_trio._core.errors import (
    STEP_FAILED,
    ChildFailed,
    InvalidState,
    InvalidTransition,
    NonRetriable,
    RunFailed,
    StreamlineError,
    WaitTimedOut,
    error_code,
    is_marked_non_retriable,
    leaves_of,
    message_of,
)

CONTRACT = """
DefinitionError workflow.definition_error 400 · ValidationError workflow.validation_error 400 ·
WorkflowNotFound workflow.unknown 404 · RunNotFound workflow.not_found 404 ·
StepNotFound workflow.step.not_found 404 · ScheduleNotFound workflow.schedule.not_found 404 ·
InvalidState workflow.invalid_state 409 · InvalidTransition workflow.invalid_transition 409 ·
ConcurrencyLimitReached workflow.concurrency_limit_reached 429 · StepTimeout workflow.step.timeout 408 ·
RunTimeout workflow.timeout 408 · RunFailed workflow.failed 500 · RunCancelled workflow.cancelled 409 ·
LeaseLost workflow.lease_lost 409 · DataCorruption workflow.data_corruption 500 ·
VersionMismatch workflow.version_mismatch 500 · PayloadTooLarge workflow.payload_too_large 413 ·
TenantRequired workflow.tenant_required 400 · TokenInvalid workflow.token_invalid 403 ·
SuspensionMismatch workflow.suspension 500 · SuspensionError workflow.suspension 500 ·
WaitTimedOut workflow.wait.timed_out 408 · WaitWithdrawn workflow.wait.withdrawn 409 ·
ChildFailed workflow.child_failed 500 · JoinFailed workflow.join_failed 500 ·
OutputMissing workflow.output_missing 500 · LoopLimitExceeded workflow.loop_limit 500 ·
GuardRefused workflow.guard_refused 403 · StoreUnavailable workflow.store_unavailable 503 ·
NonRetriable workflow.non_retriable 500
"""

ROWS = [tuple(row.split()) for row in CONTRACT.split("·")]


class Declined(Exception):
    code = "INSUFFICIENT_FUNDS"
    retriable = False


class Unspeakable(Exception):
    @property
    def code(self) -> str:
        raise RuntimeError("no code today")

    def __str__(self) -> str:
        raise RuntimeError("no text today")


@pytest.mark.parametrize(("name", "code", "status"), ROWS)
def test_each_error_has_its_published_code_and_status(name, code, status):
    """Proves that every class of the contract exists with its code and HTTP status."""
    kind = getattr(errors, name)
    assert (kind.code, kind.status) == (code, int(status))
    assert issubclass(kind, StreamlineError)


def test_the_contract_names_every_public_error():
    """Proves that no public class of the tree is missing from the contract."""
    public = {
        name
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, StreamlineError) and not name.startswith("_")
    }
    assert public == {row[0] for row in ROWS} | {"StreamlineError"}


def test_the_drawn_tree_is_the_real_one():
    """Proves that the module's docstring shows each class with its code, status and depth."""
    drawn = [line.split() for line in (errors.__doc__ or "").splitlines() if "workflow." in line]
    shown = {words[-3]: (words[-2], int(words[-1]), "│" in words) for words in drawn}
    for name, (code, status, nested) in shown.items():
        kind = getattr(errors, name)
        parents = [base for base in kind.__mro__[1:] if not base.__name__.startswith("_")]
        assert (kind.code, kind.status) == (code, status)
        assert nested == (name != "StreamlineError" and parents[0] is not StreamlineError)
    assert set(shown) == {row[0] for row in ROWS} | {"StreamlineError"}


def test_meta_holds_the_facts():
    """Proves that keywords of the constructor become `meta`, and the message the text."""
    error = errors.RunNotFound("no run r-1", run_id="r-1")
    assert (str(error), error.meta) == ("no run r-1", {"run_id": "r-1"})


def test_invalid_state_tells_action_status_and_what_is_allowed():
    """Proves that the run's status is kept apart from the HTTP status."""
    error = InvalidState("cannot pause", action="pause", status="done", allowed=["running", "waiting"])
    assert (error.action, vars(error)["status"], error.allowed) == ("pause", "done", ("running", "waiting"))
    assert (type(error).status, InvalidState("no", action="pause").status) == (409, 409)
    assert error.meta == {"action": "pause", "status": "done", "allowed": ("running", "waiting")}


def test_invalid_transition_tells_the_edge():
    """Proves that an illegal transition names entity and edge, as attributes and in meta."""
    error = InvalidTransition("no such edge", "step", "charge", "done", "running")
    assert (error.entity, error.entity_id) == ("step", "charge")
    assert error.meta["from_status"] == error.from_status == "done"
    assert error.meta["to_status"] == error.to_status == "running"


@pytest.mark.parametrize("kind", [RunFailed, errors.RunCancelled, ChildFailed])
def test_errors_about_a_run_carry_it(kind):
    """Proves that the awaited or child run comes with the error, outside of meta."""
    run = object()
    error = kind("it failed", run=run, why="x")
    assert error.run is run
    assert error.meta == {"why": "x"}
    assert kind("it failed").run is None


@pytest.mark.parametrize(
    "error",
    [
        InvalidState("no", action="pause", status="done", allowed=["running"]),
        InvalidTransition("no", "run", "r-1", "done", "waiting"),
        RunFailed("it failed", run={"id": "r-1"}),
        NonRetriable("declined", amount=3),
    ],
)
def test_errors_survive_pickling_and_copying(error):
    """Proves that an error keeps its fields and notes across processes and copies."""
    error.add_note("seen")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - our own bytes
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_an_error_of_ours_gives_its_code():
    """Proves that the stored code of one of our errors is its class's."""
    assert error_code(WaitTimedOut("late")) == "workflow.wait.timed_out"


def test_a_foreign_error_gives_its_own_code():
    """S053: proves that a foreign error's text code is stored, and that it may refuse retries."""
    assert error_code(Declined("no money")) == "INSUFFICIENT_FUNDS"
    assert message_of(Declined("no money")) == "no money"
    assert is_marked_non_retriable(Declined("no money"))


def test_an_error_without_a_usable_code_is_a_failed_step():
    """Proves that a missing, empty, numeric or failing `code` falls back to the general one."""
    numeric, empty = ValueError("x"), ValueError("x")
    vars(numeric)["code"] = 5
    vars(empty)["code"] = ""
    for error in (ValueError("x"), numeric, empty, Unspeakable()):
        assert error_code(error) == STEP_FAILED == "workflow.step.failed"


def test_non_retriable_says_so_itself():
    """S054: proves that the dedicated class exposes retriable = False and keeps its message."""
    error = NonRetriable("card stolen")
    assert error.retriable is False
    assert is_marked_non_retriable(error)
    assert (error_code(error), message_of(error)) == ("workflow.non_retriable", "card stolen")


def test_only_false_marks_an_error():
    """Proves that a missing, true or merely falsy mark leaves an error retriable."""
    falsy = ValueError("x")
    vars(falsy)["retriable"] = 0
    for error in (ValueError("x"), falsy, WaitTimedOut("late"), Unspeakable()):
        assert not is_marked_non_retriable(error)


def test_a_non_retriable_member_marks_the_whole_group():
    """Proves that a mark counts at any depth of a group."""
    deep = ExceptionGroup("outer", [ValueError("a"), ExceptionGroup("inner", [NonRetriable("b")])])
    assert is_marked_non_retriable(deep)
    assert not is_marked_non_retriable(ExceptionGroup("outer", [ValueError("a")]))


def test_a_group_has_the_code_of_its_first_member_of_ours():
    """Proves that our codes win over foreign ones, which win over none."""
    assert error_code(ExceptionGroup("g", [Declined("a"), WaitTimedOut("b")])) == "workflow.wait.timed_out"
    assert error_code(ExceptionGroup("g", [ValueError("a"), Declined("b")])) == "INSUFFICIENT_FUNDS"
    assert error_code(ExceptionGroup("g", [ValueError("a")])) == STEP_FAILED


def test_an_error_without_text_gives_its_class_name():
    """S058: proves that raising an error with no text still stores a message."""
    assert message_of(ValueError()) == "ValueError"
    assert message_of(Unspeakable()) == "Unspeakable"


def test_a_group_of_one_gives_its_member_text():
    """Proves that a group made by a nursery around one failure does not hide its text."""
    assert message_of(ExceptionGroup("nursery", [ExceptionGroup("inner", [KeyError("id")])])) == "'id'"


def test_a_larger_group_gives_the_texts_of_its_members():
    """Proves that the message holds every cause, and stays bounded."""
    assert message_of(ExceptionGroup("two", [ValueError("a"), ValueError("b")])).endswith(": a; b")
    many = message_of(ExceptionGroup("many", [ValueError(f"e{number}") for number in range(25)]))
    assert many.endswith("e8; e9; and 15 more")


def test_leaves_come_in_order():
    """Proves that the members of nested groups are told from first to last."""
    leaves = [ValueError(str(number)) for number in range(4)]
    group = ExceptionGroup("o", [leaves[0], ExceptionGroup("i", leaves[1:3]), leaves[3]])
    assert list(leaves_of(group)) == leaves
