"""Asking for an approval: a wait for a person whose outcomes are all values."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar, overload

from typing_extensions import TypeForm

from streamline_trio._core import payload
from streamline_trio._core.approvals import (
    Approved,
    Rejected,
    TimedOut,
    Withdrawn,
    decision_decoder,
    shape_of,
)
from streamline_trio._core.checking import check_reason
from streamline_trio._runtime.tokens import check_token, digest_of
from streamline_trio._runtime.waits import Waits

T = TypeVar("T")


class Approvals(Waits):
    """People decide: yes or no, instead of a payload."""

    __slots__ = ()

    @overload
    async def request_approval(
        self,
        reason: str,
        *,
        returns: TypeForm[T],
        timeout: float | timedelta | None = None,
        name: str | None = None,
        token: str | None = None,
        meta: Mapping[str, Any] | None = None,
        on_token: Callable[[str], Awaitable[object]] | None = None,
    ) -> Approved[T] | Rejected | Withdrawn | TimedOut: ...
    @overload
    async def request_approval(
        self,
        reason: str,
        *,
        timeout: float | timedelta | None = None,
        name: str | None = None,
        token: str | None = None,
        meta: Mapping[str, Any] | None = None,
        on_token: Callable[[str], Awaitable[object]] | None = None,
    ) -> Approved[Any] | Rejected | Withdrawn | TimedOut: ...
    async def request_approval(
        self,
        reason: str,
        *,
        returns: Any = Any,
        timeout: float | timedelta | None = None,
        name: str | None = None,
        token: str | None = None,
        meta: Mapping[str, Any] | None = None,
        on_token: Callable[[str], Awaitable[object]] | None = None,
    ) -> Any:
        """Park until a person approves or rejects; what came of it, as a value.

        `engine.approve(token, data)` gives `Approved(data)`, the data rebuilt as `returns` (what does not fit is
        refused to whoever approves); `engine.reject(token, reason)` gives `Rejected(reason)`, a withdrawal
        `Withdrawn(reason)`, and after `timeout` seconds it is `TimedOut()`. Nothing else answers it: a payload of
        `resume` that is not a decision is refused, and the wait stays open. All four outcomes are kept over
        attempts and crashes; `retry`, goto and rewind ask afresh. The other arguments are those of `wait`.
        """
        decoder = decision_decoder(returns)
        check_reason(reason, "the reason of an approval")
        ask = self._ask(
            "human",
            name,
            f"approval\n{reason}",
            due_at=self._deadline(timeout),
            reason=reason,
            shape=shape_of(returns),
            meta=None if meta is None else payload.encode(dict(meta), what="meta of the approval"),
            token=None if token is None else digest_of(check_token(token), self._driver.run.origin.tenant),
            approval=True,
        )
        value = await self._suspend(ask, token=token, on_token=on_token)
        return decoder.decode(value, what=f"the decision on {reason!r}")
