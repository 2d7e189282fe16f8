"""The verbs of a step context that start other runs and wait for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, overload

from streamline_trio._core import payload
from streamline_trio._core.checking import is_a, is_mapping, is_text, is_whole
from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import Record
from streamline_trio._core.errors import JoinFailed, ValidationError
from streamline_trio._core.happenings import Ask, WaitOpened
from streamline_trio._core.joins import POLICIES, JoinPolicy, digest_of
from streamline_trio._core.naming import TAG_RULE, is_tag
from streamline_trio._core.shapes import describe
from streamline_trio._runtime.children import (
    ChildOptions,
    ChildRequest,
    ChildStarter,
    child_failed,
    child_output,
    failure_of_join,
    join_result,
    last_step,
)
from streamline_trio._runtime.joined import Branch, JoinResult
from streamline_trio._runtime.waits import Waits

InputT = TypeVar("InputT")
OnFailure = Literal["raise", "return"]

MOST_BRANCHES = 100_000
_LONGEST_KEY = 200
_LONGEST_USER = 500
_MAX_PRIORITY = 100


class Joins(Waits):
    """Children are runs of their own: they go on whatever happens to this worker, and end with their parent."""

    __slots__ = ()

    @overload
    async def child(
        self,
        workflow: Workflow[InputT, Any],
        input: InputT,
        *,
        name: str | None = None,
        on_failure: OnFailure = "raise",
        priority: int | None = None,
        tags: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
        user: str | None = None,
    ) -> Any: ...
    @overload
    async def child(
        self,
        workflow: Workflow[None, Any] | str,
        input: Any = None,
        *,
        name: str | None = None,
        on_failure: OnFailure = "raise",
        priority: int | None = None,
        tags: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
        user: str | None = None,
    ) -> Any: ...
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
        """Start a run of another workflow, once, park until it has settled, and give its output.

        After a crash the same child is waited for. It inherits tenant and priority, and is cancelled when this
        step no longer waits for it: the run is cancelled, fails, or leaves the step. A definition that this engine
        was not given may be passed: some other worker has to run it. Raises `ChildFailed`, which carries the child,
        if it ends in any other way than done; with `on_failure="return"` that error is the result. It is not
        retried unless `retry_on` names it, and a retry starts a new child. Raises `WorkflowNotFound`, and
        `ValidationError` for an input that does not fit, before anything is written. A cancel point.
        """
        if on_failure not in get_args(OnFailure):
            raise ValidationError(f"child: on_failure is one of {get_args(OnFailure)}, not {on_failure!r}")
        known = self._driver.services.registry.known(workflow)
        options = self._options(priority, tags, meta, user)
        starter = self._starter([ChildRequest(workflow=known, value=input)], options)
        returns = last_step(known).returns
        ask = self._ask(
            "child",
            name,
            f"child\n{known.id}",
            reason=known.id,
            shape=None if returns is Any else describe(returns),
            group=self._mint_group(),
            branches=1,
        )
        record = await self._started(ask, starter)
        if record.outcome == "value":
            return child_output(record, known)
        failure = await child_failed(self._driver.services, self._driver.run.origin.tenant, record, known.id)
        if on_failure == "return":
            return failure
        raise failure

    async def join(
        self,
        branches: Mapping[str, Branch[Any]],
        policy: JoinPolicy = "all",
        cancel_losers: bool = True,  # noqa: FBT001, FBT002 - as it is documented
        concurrency: int | None = None,
        *,
        name: str | None = None,
    ) -> JoinResult:
        """Start a run for each branch, once, and park until their ends satisfy the policy, or no longer can.

        `all` waits for every branch and raises `JoinFailed` as soon as one is not done; `any` waits for the first
        that is done, `race` for the first that settles, `settled` for all of them, however they end. Branches that
        have not settled by then are cancelled; with `cancel_losers=False` they go on, and those not yet started
        never are. At most `concurrency` of them are under way at a time. The result holds the branches that had
        settled. Inheritance, cancellation, crashes, retries and errors are as for `child`. A cancel point.
        """
        requests = self._requests(branches, policy, concurrency)
        if not requests:
            return JoinResult(policy=policy, satisfied=policy in {"all", "settled"}, branches={})
        starter = self._starter(requests, self._options(None, (), None, None))
        digest = digest_of([(request.branch, request.workflow.id) for request in requests])
        ask = self._ask(
            "join",
            name,
            f"join\n{policy}\n{digest}",
            reason=f"{len(requests)} branches",
            group=self._mint_group(),
            policy=policy,
            branches=len(requests),
            concurrency=concurrency,
            keeps_losers=not cancel_losers,
        )
        record = await self._started(ask, starter)
        known = [(request.branch, request.workflow) for request in requests]
        result = await join_result(self._driver.services, self._driver.run.origin.tenant, record, known)
        if record.outcome == "value":
            return result
        raise JoinFailed(failure_of_join(record, list(branches)), result=result, step=self._step.id)

    async def _started(self, ask: Ask, starter: ChildStarter) -> Record:
        """The resolved record. Its children are started once it is durable, and before the handler parks."""

        async def prepare(ask: Ask, record: Record | None) -> Ask:
            if record is None:
                starter.check()
                run = await self._driver.commit(WaitOpened(step=self._step.id, ask=ask, **self._held))
                self._suspender.opened((ask,))
                record = run.records.get(ask.key)
            if record is None or not record.is_open or record.started >= record.branches:
                return ask
            return await starter.start(ask, record, self._held)

        return await self._resolved(ask, prepare=prepare)

    def _starter(self, requests: Sequence[ChildRequest], options: ChildOptions) -> ChildStarter:
        return ChildStarter(self._driver, self._step.id, requests, options)

    def _mint_group(self) -> str:
        return self._driver.services.chance.run_id(self._driver.now())

    def _requests(
        self, branches: Mapping[str, Branch[Any]], policy: JoinPolicy, concurrency: int | None
    ) -> list[ChildRequest]:
        if policy not in POLICIES:
            raise ValidationError(f"join: policy is one of {POLICIES}, not {policy!r}")
        if concurrency is not None and not is_whole(concurrency, 1):
            raise ValidationError(f"join: concurrency is a whole number of at least 1, not {concurrency!r}")
        if not is_mapping(branches) or len(branches) > MOST_BRANCHES:
            raise ValidationError(f"join takes a mapping of at most {MOST_BRANCHES} branches")
        registry = self._driver.services.registry
        requests: list[ChildRequest] = []
        # With `concurrency` this is gone through for every few branches: each workflow is looked up once.
        found: dict[object, Workflow[Any, Any]] = {}
        for index, (key, branch) in enumerate(branches.items()):
            if not (
                is_text(key, _LONGEST_KEY)
                and is_a(branch, Branch)
                and (is_a(branch.workflow, Workflow) or is_a(branch.workflow, str))
            ):
                raise ValidationError(
                    f"join: a branch is Branch(workflow, input) under a text, not {key!r}: {branch!r}"
                )
            known = found.get(branch.workflow)
            if known is None:
                known = found[branch.workflow] = registry.known(branch.workflow)
            requests.append(ChildRequest(index=index, branch=key, workflow=known, value=branch.input))
        return requests

    def _options(
        self, priority: int | None, tags: Sequence[str], meta: Mapping[str, Any] | None, user: str | None
    ) -> ChildOptions:
        if priority is not None and not is_whole(priority, -_MAX_PRIORITY, _MAX_PRIORITY):
            raise ValidationError(f"child: priority is a whole number from -100 to 100, not {priority!r}")
        if isinstance(tags, str) or not all(is_tag(tag) for tag in tags):
            raise ValidationError(f"child: tags are texts of {TAG_RULE}, not {tags!r}")
        if meta is not None and not is_mapping(meta):
            raise ValidationError(f"child: meta is a mapping, not {meta!r}")
        if user is not None and not is_text(user, _LONGEST_USER):
            raise ValidationError(f"child: user has 1 to {_LONGEST_USER} characters, not {user!r}")
        return ChildOptions(
            priority=self._driver.run.origin.priority if priority is None else priority,
            tags=tuple(tags),
            meta=None if not meta else payload.encode(dict(meta), what="meta of the child"),
            user=user,
        )
