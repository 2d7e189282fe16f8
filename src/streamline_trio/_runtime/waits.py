"""The verbs of a step context that park the run: timers, people, signals, and leaving for another step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Never, TypeVar, overload

import msgspec
import trio
import whenever
from typing_extensions import TypeForm

from streamline_trio._core import payload
from streamline_trio._core.approvals import undecided
from streamline_trio._core.checking import check_reason
from streamline_trio._core.documents import FAILED_OUTCOMES, Record
from streamline_trio._core.durations import instant_millis, seconds_of, to_millis
from streamline_trio._core.errors import StepNotFound, WaitTimedOut, WaitWithdrawn
from streamline_trio._core.happenings import Ask, WaitOpened
from streamline_trio._core.shapes import describe
from streamline_trio._core.signals import Signal, signal_name
from streamline_trio._core.step import Step, step_id_of
from streamline_trio._runtime.entry import Entry
from streamline_trio._runtime.suspension import Goto
from streamline_trio._runtime.tokens import check_token, digest_of

T = TypeVar("T")

_VERBS: dict[str, str] = {"timer": "sleep", "human": "wait", "signal": "wait_for"}


class Waits(Entry):
    """Each unwinds the handler; after the wait it is called again from its first line and gets what is recorded."""

    __slots__ = ()

    async def sleep(self, seconds: float | timedelta) -> None:
        """Park for a while, of any length; no task or timer stays in the worker. Raises nothing but on misuse."""
        millis = to_millis(seconds_of(seconds, what="sleep"))
        await self._sleep(self._driver.now() + millis)

    async def sleep_until(self, instant: datetime | whenever.Instant | whenever.ZonedDateTime) -> None:
        """Park until an instant; one that has passed ends the sleep at once."""
        await self._sleep(instant_millis(instant, what="sleep_until"))

    async def _sleep(self, due_at: int) -> None:
        await self._suspend(self._ask("timer", None, "timer", due_at=due_at))

    @overload
    async def wait(
        self,
        reason: str,
        *,
        returns: TypeForm[T],
        timeout: float | timedelta | None = None,
        name: str | None = None,
        token: str | None = None,
        meta: Mapping[str, Any] | None = None,
        on_token: Callable[[str], Awaitable[object]] | None = None,
    ) -> T: ...
    @overload
    async def wait(
        self,
        reason: str,
        *,
        timeout: float | timedelta | None = None,
        name: str | None = None,
        token: str | None = None,
        meta: Mapping[str, Any] | None = None,
        on_token: Callable[[str], Awaitable[object]] | None = None,
    ) -> Any: ...
    async def wait(
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
        """Park until a person answers; the payload, rebuilt as `returns`.

        With `on_token` a token is minted (or `token` is taken, at least 16 characters): `on_token(token)` is
        awaited once the wait is durable and before it parks, at least once; after a crash again, with a further
        valid token. Only digests of tokens are stored. Raises `WaitTimedOut` after `timeout` seconds and
        `WaitWithdrawn`; neither is retried unless `retry_on` names it.
        """
        decoder = payload.decoder(returns)
        check_reason(reason, "the reason of a wait")
        ask = self._ask(
            "human",
            name,
            f"human\n{reason}",
            due_at=self._deadline(timeout),
            reason=reason,
            shape=None if returns is Any else describe(returns),
            meta=None if meta is None else payload.encode(dict(meta), what="meta of the wait"),
            token=None if token is None else digest_of(check_token(token), self._driver.run.origin.tenant),
        )
        value = await self._suspend(ask, token=token, on_token=on_token)
        return decoder.decode(value, what=f"the answer to {reason!r}")

    @overload
    async def wait_for(
        self,
        signal: Signal[T],
        *,
        match: Mapping[str, Any] | None = None,
        timeout: float | timedelta | None = None,
        name: str | None = None,
    ) -> T: ...
    @overload
    async def wait_for(
        self,
        signal: str,
        *,
        match: Mapping[str, Any] | None = None,
        timeout: float | timedelta | None = None,
        name: str | None = None,
    ) -> Any: ...
    async def wait_for(
        self,
        signal: Signal[Any] | str,
        *,
        match: Mapping[str, Any] | None = None,
        timeout: float | timedelta | None = None,
        name: str | None = None,
    ) -> Any:
        """Park until the signal comes; its payload.

        A signal that was addressed to this run before is not lost: the oldest one that fits is taken. `match`
        compares fields of the payload. Raises `WaitTimedOut`.
        """
        type_ = Any if isinstance(signal, str) else signal.type
        wanted = signal_name(signal)
        ask = self._ask(
            "signal",
            name,
            f"signal\n{wanted}",
            due_at=self._deadline(timeout),
            signal=wanted,
            match=None if match is None else payload.encode(dict(match), what="match"),
            shape=None if type_ is Any else describe(type_),
        )
        value = await self._suspend(ask)
        return payload.decoder(type_).decode(value, what=f"signal {wanted!r}")

    async def goto(self, step: Step[Any] | str) -> Never:
        """Leave this step and go on at another one.

        Back, or to itself: all steps from the target up to and including this one are reset and run again.
        Forward: this step counts as skipped, those between stay pending. `StepNotFound` for an unknown target.
        """
        target = step_id_of(step)
        if target not in self._workflow.steps:
            raise StepNotFound(f"cannot go to {target!r}: workflow {self.workflow} has no such step", step=target)
        self._suspender.require_handler("goto")
        self._suspender.require_possible("goto")
        await self._suspender.unwind(Goto(target))

    def _deadline(self, timeout: float | timedelta | None) -> int | None:
        if timeout is None:
            return None
        return self._driver.now() + to_millis(seconds_of(timeout, what="timeout"))

    def _ask(self, kind: Any, name: str | None, ask: str, **fields: Any) -> Ask:
        check_reason(name, "the name of a wait", shortest=1)
        self._suspender.require_possible(_VERBS.get(kind) or kind)
        return Ask(
            key=self._suspender.key_of(kind, name),
            kind=kind,
            ask=ask,
            place=self._suspender.place(),
            name=name or "",
            **fields,
        )

    async def _suspend(
        self,
        ask: Ask,
        *,
        token: str | None = None,
        on_token: Callable[[str], Awaitable[object]] | None = None,
    ) -> bytes:
        """The outcome's payload: at once if it is recorded, else after unwinding."""
        record = await self._resolved(ask, token=token, on_token=on_token)
        return self._outcome(ask, record.outcome, record.value, record.note)

    async def _resolved(
        self,
        ask: Ask,
        *,
        token: str | None = None,
        on_token: Callable[[str], Awaitable[object]] | None = None,
        prepare: Callable[[Ask, Record | None], Awaitable[Ask]] | None = None,
    ) -> Record:
        """The record with its outcome: at once if there is one, else after unwinding.

        `prepare` does what must be done before the handler parks, and says what is then asked.
        """
        record = self._suspender.recorded(self._driver.run, ask)
        if prepare is not None and (record is None or record.outcome is None):
            ask = await prepare(ask, record)
            record = self._driver.run.records.get(ask.key)
        if on_token is not None and (record is None or (record.outcome is None and not record.told)):
            ask = await self._tell_token(ask, token, on_token)
            record = self._driver.run.records.get(ask.key)
        if record is not None and record.outcome is not None:
            await trio.lowlevel.checkpoint()
            return record
        is_key = self._suspender.strand is not self._suspender.root
        return await self._suspender.unwind(msgspec.structs.replace(ask, told=on_token is not None, unwound=is_key))

    async def _tell_token(self, ask: Ask, token: str | None, on_token: Callable[[str], Awaitable[object]]) -> Ask:
        """Open the wait so that it can be answered, and pass its token on."""
        known = token
        if known is None:
            known = self._driver.mint_token()
            ask = msgspec.structs.replace(ask, token=digest_of(known))
        await self._driver.commit(WaitOpened(step=self._step.id, ask=ask, **self._held))
        self._suspender.opened((ask,))
        await on_token(known)
        return ask

    def _outcome(self, ask: Ask, outcome: str | None, value: bytes | None, note: str | None) -> bytes:
        if ask.approval and outcome in FAILED_OUTCOMES:
            return undecided(outcome, note)
        title = ask.name or ask.reason or ask.signal
        if outcome == "timed_out":
            raise WaitTimedOut(f"nobody answered {title!r} in time", step=self._step.id, wait=title)
        if outcome == "withdrawn":
            text = f"the wait {title!r} was withdrawn" + (f": {note}" if note else "")
            raise WaitWithdrawn(text, step=self._step.id, wait=title, reason=note)
        return payload.NULL if value is None else value
