"""What a join is asked for, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

import msgspec

from streamline_trio._core.definition import Workflow
from streamline_trio._core.joins import JoinPolicy
from streamline_trio._core.status import RunStatus
from streamline_trio._runtime.snapshot import RunError

InputT = TypeVar("InputT")


@dataclass(frozen=True, init=False)
class Branch(Generic[InputT]):
    """One branch of a join: a run of `workflow` (a definition, or the id of one that the engine has) on `input`."""

    workflow: Workflow[InputT, Any] | str
    input: InputT

    @overload
    def __init__(self, workflow: Workflow[InputT, Any], input: InputT) -> None: ...
    @overload
    def __init__(self, workflow: Workflow[None, Any] | str, input: Any = None) -> None: ...
    def __init__(self, workflow: Workflow[Any, Any] | str, input: Any = None) -> None:
        object.__setattr__(self, "workflow", workflow)
        object.__setattr__(self, "input", input)


class BranchResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a branch settled; `output` only of one that is done, in its type if the engine knows the workflow."""

    run_id: str
    status: RunStatus
    output: Any = None
    error: RunError | None = None


class JoinResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a join has come to: the branches that had settled by then, in the order of the mapping."""

    policy: JoinPolicy
    satisfied: bool
    branches: dict[str, BranchResult]
