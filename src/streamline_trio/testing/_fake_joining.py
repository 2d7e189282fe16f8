"""Children and joins of a fake context: nothing is started, the test says how they end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import trio

from streamline_trio import Branch, BranchResult, ChildFailed, JoinFailed, JoinResult, RunError, Workflow
from streamline_trio._core import payload
from streamline_trio._core.checking import is_a, is_mapping
from streamline_trio._core.documents import Record
from streamline_trio._core.errors import ValidationError, error_code
from streamline_trio._core.joins import JoinPolicy, branch_id, outcome_of, set_of
from streamline_trio._runtime.joining import Joins, OnFailure
from streamline_trio.testing._fake_answers import Answers, Asked, NotGiven


class FakeJoins(Joins):
    """`child` and `join`, answered from the `answers` of a fake context.

    A child is answered by its name or the id of its workflow: its output, or a `ChildFailed`. A join is answered by
    its name, or as "join": a `JoinResult`, or how branches end, in that order: outputs, or exceptions.
    """

    _answers: Answers

    @property
    @abstractmethod
    def step_id(self) -> str: ...

    @abstractmethod
    def _note(self, asked: Asked) -> None: ...

    async def child(
        self,
        workflow: Workflow[Any, Any] | str,
        input: Any = None,
        *,
        name: str | None = None,
        on_failure: OnFailure = "raise",
        priority: int | None = None,
        tags: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
        user: str | None = None,
    ) -> Any:
        """The output given under the name or the workflow's id, in its type; a given `ChildFailed` is raised."""
        del priority, tags, meta, user
        asked = Asked(kind="child", name=name, workflow=_id_of(workflow), input=_checked(workflow, input))
        self._note(asked)
        await trio.lowlevel.checkpoint()
        try:
            return self._answers.take(asked, _returns(workflow), self.step_id)
        except ChildFailed as failure:
            if on_failure == "raise":
                raise
            return failure

    async def join(
        self,
        branches: Mapping[str, Branch[Any]],
        policy: JoinPolicy = "all",
        cancel_losers: bool = True,  # noqa: FBT001, FBT002 - as the real one has it
        concurrency: int | None = None,
        *,
        name: str | None = None,
    ) -> JoinResult:
        """What the answer under the name, or "join", comes to by the policy; `JoinFailed` as in a run."""
        del cancel_losers, concurrency
        inputs = {key: _checked(branch.workflow, branch.input) for key, branch in branches.items()}
        asked = Asked(kind="join", name=name, reason="join", policy=policy, branches=inputs)
        self._note(asked)
        await trio.lowlevel.checkpoint()
        given = self._answers.take_as_given(asked, self.step_id)
        if is_a(given, JoinResult):
            result: JoinResult = given
            return result
        if not is_mapping(given):
            raise ValidationError(
                f"a join is answered by a JoinResult or by how its branches end, not by {given!r}"
            )
        return _outcome(branches, policy, given, self.step_id)


def _outcome(
    branches: Mapping[str, Branch[Any]], policy: JoinPolicy, ends: Mapping[str, Any], step: str
) -> JoinResult:
    keys, settled, good = list(branches), dict[int, BranchResult](), set[int]()
    for key, end in ends.items():
        place = keys.index(key)
        settled[place] = _result(branches[key], branch_id("join", place), end)
        if settled[place].status == "done":
            good.add(place)
        record = Record(
            kind="join",
            ask="",
            attempt=1,
            place=0,
            opened_at=0,
            policy=policy,
            branches=len(keys),
            ended=f"{set_of(settled):x}",
            good=f"{set_of(good):x}",
        )
        outcome = outcome_of(record)
        if outcome is not None:
            satisfied = bool(good) if policy in {"any", "race"} else outcome == "value"
            results = {keys[place]: settled[place] for place in sorted(settled)}
            result = JoinResult(policy=policy, satisfied=satisfied, branches=results)
            if outcome == "value":
                return result
            raise JoinFailed(f"branch {key!r} failed: {end}", result=result, step=step)
    raise NotGiven(f"step {step} joins {keys} by {policy!r}: say how more of them end than {list(ends)}")


def _result(branch: Branch[Any], run_id: str, end: Any) -> BranchResult:
    if isinstance(end, BaseException):
        error = RunError(code=error_code(end), message=str(end), type=type(end).__name__)
        return BranchResult(run_id=run_id, status="failed", error=error)
    output = payload.rebuild(end, _returns(branch.workflow), what=f"the output of branch {run_id}")
    return BranchResult(run_id=run_id, status="done", output=output)


def _id_of(workflow: Workflow[Any, Any] | str) -> str:
    return workflow.id if isinstance(workflow, Workflow) else workflow


def _returns(workflow: Workflow[Any, Any] | str) -> Any:
    """The type of the last step's output."""
    return list(workflow.steps.values())[-1].returns if isinstance(workflow, Workflow) else Any


def _checked(workflow: Workflow[Any, Any] | str, value: Any) -> Any:
    """The input, rebuilt; `ValidationError` if it does not fit."""
    if isinstance(workflow, Workflow):
        return payload.rebuild(value, workflow.input_type, what=f"the input of workflow {workflow.id!r}")
    return payload.rebuild(value, Any, what=f"the input of workflow {workflow!r}")
