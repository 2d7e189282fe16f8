"""Every error the engine raises, as one tree.

::

    StreamlineError               workflow.error                      500
    ├── DefinitionError           workflow.definition_error           400
    ├── ValidationError           workflow.validation_error           400
    ├── WorkflowNotFound          workflow.unknown                    404
    ├── RunNotFound               workflow.not_found                  404
    ├── StepNotFound              workflow.step.not_found             404
    ├── ScheduleNotFound          workflow.schedule.not_found         404
    ├── InvalidState              workflow.invalid_state              409
    ├── InvalidTransition         workflow.invalid_transition         409
    ├── ConcurrencyLimitReached   workflow.concurrency_limit_reached  429
    ├── StepTimeout               workflow.step.timeout               408
    ├── RunTimeout                workflow.timeout                    408
    ├── RunFailed                 workflow.failed                     500
    ├── RunCancelled              workflow.cancelled                  409
    ├── LeaseLost                 workflow.lease_lost                 409
    ├── DataCorruption            workflow.data_corruption            500
    ├── VersionMismatch           workflow.version_mismatch           500
    ├── PayloadTooLarge           workflow.payload_too_large          413
    ├── TenantRequired            workflow.tenant_required            400
    ├── TokenInvalid              workflow.token_invalid              403
    ├── SuspensionError           workflow.suspension                 500
    │   └── SuspensionMismatch    workflow.suspension                 500
    ├── WaitTimedOut              workflow.wait.timed_out             408
    ├── WaitWithdrawn             workflow.wait.withdrawn             409
    ├── ChildFailed               workflow.child_failed               500
    ├── JoinFailed                workflow.join_failed                500
    ├── OutputMissing             workflow.output_missing             500
    ├── LoopLimitExceeded         workflow.loop_limit                 500
    ├── GuardRefused              workflow.guard_refused              403
    ├── StoreUnavailable          workflow.store_unavailable          503
    └── NonRetriable              workflow.non_retriable              500

The second column is ``code``, which is stored with a failed run and is what programs
should compare; the third is ``status``, the HTTP status a surface answers with (``type(error).status``:
an ``InvalidState`` has the run's status on the instance).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

STEP_FAILED = "workflow.step.failed"
"""The stored code of a failure that brings no code of its own."""

_LEAVES_TOLD = 10


class StreamlineError(Exception):
    """The root of the tree.

    `meta` holds the facts of this failure by name, in plain data.
    """

    code: ClassVar[str] = "workflow.error"
    status: ClassVar[int] = 500
    retriable: ClassVar[bool] = True

    def __init__(self, message: str = "", /, **meta: Any) -> None:
        super().__init__(message)
        self.meta: dict[str, Any] = meta

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[StreamlineError], args: tuple[Any, ...], fields: dict[str, Any]) -> StreamlineError:
    """Rebuild a pickled or copied error without asking its constructor again."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class DefinitionError(StreamlineError):
    """A workflow, step or option is defined wrongly; told when it is defined."""

    code = "workflow.definition_error"
    status = 400


class ValidationError(StreamlineError):
    """A value does not have the type, form or range that is asked for."""

    code = "workflow.validation_error"
    status = 400


class WorkflowNotFound(StreamlineError):
    """No workflow of this name (and version) is known."""

    code = "workflow.unknown"
    status = 404


class RunNotFound(StreamlineError):
    """No run has this id, or none that this caller may see."""

    code = "workflow.not_found"
    status = 404


class StepNotFound(StreamlineError):
    """The workflow has no step of this id."""

    code = "workflow.step.not_found"
    status = 404


class ScheduleNotFound(StreamlineError):
    """No schedule has this id."""

    code = "workflow.schedule.not_found"
    status = 404


class InvalidState(StreamlineError):
    """A verb was asked of a run whose status does not allow it.

    `action` is the verb, `allowed` the statuses that would do. On the instance `status` is the
    status that the run has; the HTTP one is the class's, as for every other error.
    """

    code = "workflow.invalid_state"
    status = 409

    def __init__(
        self,
        message: str,
        /,
        *,
        action: str,
        status: str | None = None,
        allowed: Iterable[str] = (),
        **meta: Any,
    ) -> None:
        self.action = action
        self.allowed: tuple[str, ...] = tuple(allowed)
        super().__init__(message, action=action, status=status, allowed=self.allowed, **meta)
        if status is not None:
            self.__dict__["status"] = status


class InvalidTransition(StreamlineError):
    """The engine was about to move a run or step along an edge that does not exist."""

    code = "workflow.invalid_transition"
    status = 409

    def __init__(self, message: str, /, entity: str, entity_id: str, from_status: str, to_status: str) -> None:
        self.entity = entity
        self.entity_id = entity_id
        self.from_status = from_status
        self.to_status = to_status
        super().__init__(
            message,
            entity=entity,
            entity_id=entity_id,
            from_status=from_status,
            to_status=to_status,
        )


class ConcurrencyLimitReached(StreamlineError):
    """Every slot is taken and the workflow refuses instead of queueing."""

    code = "workflow.concurrency_limit_reached"
    status = 429


class StepTimeout(StreamlineError):
    """An attempt ran longer than the step's `timeout`."""

    code = "workflow.step.timeout"
    status = 408


class RunTimeout(StreamlineError):
    """The run as a whole took longer than the workflow's `timeout`."""

    code = "workflow.timeout"
    status = 408


class _AboutRun(StreamlineError):
    """An error that carries the run it tells of, as it was when the error was raised."""

    def __init__(self, message: str = "", /, *, run: Any = None, **meta: Any) -> None:
        self.run = run
        super().__init__(message, **meta)


class RunFailed(_AboutRun):
    """The awaited run failed; `run` is its settled snapshot."""

    code = "workflow.failed"
    status = 500


class RunCancelled(_AboutRun):
    """The awaited run was cancelled; `run` is its settled snapshot."""

    code = "workflow.cancelled"
    status = 409


class LeaseLost(StreamlineError):
    """This worker no longer owns the run: nothing it decides about it counts."""

    code = "workflow.lease_lost"
    status = 409


class DataCorruption(StreamlineError):
    """A stored document cannot be read back."""

    code = "workflow.data_corruption"
    status = 500


class VersionMismatch(StreamlineError):
    """The definition at hand does not fit the run."""

    code = "workflow.version_mismatch"
    status = 500


class PayloadTooLarge(StreamlineError):
    """A payload is larger than its `max_payload_bytes`."""

    code = "workflow.payload_too_large"
    status = 413


class TenantRequired(StreamlineError):
    """The engine demands a tenant and none was named."""

    code = "workflow.tenant_required"
    status = 400


class TokenInvalid(StreamlineError):
    """A wait's token is unknown, altered, used or expired; which of these is not told."""

    code = "workflow.token_invalid"
    status = 403


class SuspensionError(StreamlineError):
    """The step asked to be suspended where that cannot work."""

    code = "workflow.suspension"
    status = 500


class SuspensionMismatch(SuspensionError):
    """The step, called again, asked for another suspension than it did before."""

    code = "workflow.suspension"
    status = 500


class WaitTimedOut(StreamlineError):
    """Nobody answered the wait in time."""

    code = "workflow.wait.timed_out"
    status = 408


class WaitWithdrawn(StreamlineError):
    """The wait was withdrawn before anybody answered it."""

    code = "workflow.wait.withdrawn"
    status = 409


class ChildFailed(_AboutRun):
    """A child did not end well, but as `meta["status"]`; `run` is it as it is now, or None if it was deleted."""

    code = "workflow.child_failed"
    status = 500


class JoinFailed(StreamlineError):
    """The branches of a join can no longer satisfy its policy; `result` is the `JoinResult` at that moment."""

    code = "workflow.join_failed"
    status = 500

    def __init__(self, message: str = "", /, *, result: Any = None, **meta: Any) -> None:
        self.result = result
        super().__init__(message, **meta)


class OutputMissing(StreamlineError):
    """The step whose output is asked for has not finished, or was skipped."""

    code = "workflow.output_missing"
    status = 500


class LoopLimitExceeded(StreamlineError):
    """A loop went past its `max_iterations`."""

    code = "workflow.loop_limit"
    status = 500


class GuardRefused(StreamlineError):
    """A guard refused the step or scatter key."""

    code = "workflow.guard_refused"
    status = 403


class StoreUnavailable(StreamlineError):
    """The store cannot be reached or does not answer."""

    code = "workflow.store_unavailable"
    status = 503


class NonRetriable(StreamlineError):
    """Raised by a handler to fail its step at once, whatever attempts are left."""

    code = "workflow.non_retriable"
    status = 500
    retriable = False


def leaves_of(error: BaseException) -> Iterator[BaseException]:
    """The errors a group holds at any depth, in order; an error that is no group itself."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            yield from leaves_of(member)  # pyright: ignore[reportUnknownArgumentType]
    else:
        yield error


def error_code(error: BaseException) -> str:
    """The code stored for a failure.

    Ours when the error is one of ours, else its own non-empty text attribute `code`, else
    `workflow.step.failed`. A group has the code of its first member that is one of ours, or
    else of the first that has a code.
    """
    leaves = list(leaves_of(error))
    ours = [leaf for leaf in leaves if isinstance(leaf, StreamlineError)]
    for leaf in [*ours, *leaves]:
        code = _attribute(leaf, "code")
        if isinstance(code, str) and code:
            return code
    return STEP_FAILED


def is_marked_non_retriable(error: BaseException) -> bool:
    """Whether the error, or any member of a group, has an attribute `retriable` that is False."""
    if _attribute(error, "retriable") is False:
        return True
    if isinstance(error, BaseExceptionGroup):
        members: tuple[BaseException, ...] = error.exceptions  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        return any(map(is_marked_non_retriable, members))
    return False


def message_of(error: BaseException) -> str:
    """The text stored for a failure: never empty, and it holds the text of every cause told.

    An error without text gives its class name; a group of one gives its member's text, a
    larger one its own and those of its first ten members.
    """
    leaves = list(leaves_of(error))
    if len(leaves) == 1:
        return _text(leaves[0])
    told = [_text(leaf) for leaf in leaves[:_LEAVES_TOLD]]
    if len(leaves) > _LEAVES_TOLD:
        told.append(f"and {len(leaves) - _LEAVES_TOLD} more")
    return f"{_text(error)}: {'; '.join(told)}"


def _attribute(error: BaseException, name: str) -> object:
    """An attribute of a foreign error, which may be a property that fails."""
    try:
        return getattr(error, name, None)
    except Exception:  # noqa: BLE001 - a foreign property may fail in any way
        return None


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a foreign __str__ may fail in any way
        text = ""
    return text or type(error).__name__
