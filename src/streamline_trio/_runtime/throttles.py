"""Asks throttles: one task for each bucket that is being asked, one compare-and-set for all who ask meanwhile.

What a bucket answers is durable before anybody acts on it: a begin that was noted and never happened costs the
window one begin until the run asks again, one that happened and was not noted cannot be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec
import trio

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import InvalidState, StoreUnavailable, StreamlineError
from streamline_trio._core.happenings import CancelAsked, Claimed, Happening, Slotted
from streamline_trio._core.plan import Plan
from streamline_trio._core.store import Applied, Failed, PutSide, SideDoc
from streamline_trio._core.throttling import KEPT, KIND, Bucket, Pass, Want, ask, is_held, want_of
from streamline_trio._runtime.committer import Outcome
from streamline_trio._runtime.services import Services

_AT_ONCE = 1000
_SWEPT_AT_ONCE = 100
_SECONDS_KNOWN = KEPT / 2000
_LEAST_PAUSE = 60.0

_decode = msgspec.msgpack.Decoder(Bucket).decode
_encode = msgspec.msgpack.Encoder().encode


class _Asking:
    """Runs of one bucket whose answers are waited for."""

    __slots__ = ("error", "passes", "told", "wants")

    def __init__(self, wants: Sequence[Want]) -> None:
        self.wants = wants
        self.passes: list[Pass] = []
        self.error: StreamlineError | None = None
        self.told = trio.Event()


class Throttles:
    """The throttles as one engine asks them."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lines: dict[str, list[_Asking]] = {}
        self._is_tidying = False

    def holds(self, run: RunDoc, plan: Plan) -> bool:
        """Whether a claim of the run would begin it, and its throttle has to be asked."""
        if run.head.throttle is None or plan.throttle is None:
            return False
        return is_held(run, self._services.clock.now())

    async def passed(self, run: RunDoc, plan: Plan, claim: Claimed | CancelAsked) -> Happening:
        """What is to happen to one run that is to be claimed: the claim, or a slot. `StoreUnavailable`."""
        if isinstance(claim, CancelAsked) or not self.holds(run, plan):
            return claim
        ((_, happening),) = await self.happenings([(run, plan)], claim)
        if happening is None:
            raise StoreUnavailable(f"the throttle of run {run.public_id} cannot be asked")
        return happening

    async def happenings(
        self, held: Sequence[tuple[RunDoc, Plan]], claim: Claimed
    ) -> list[tuple[RunDoc, Claimed | Slotted | None]]:
        """What is to happen to each: it is claimed as of its begin, or slotted; None: nobody could tell."""
        buckets = defaultdict[str, list[tuple[RunDoc, Want]]](list)
        for run, plan in held:
            want = want_of(run, plan, now=True)
            assert run.head.throttle is not None, "it is held by one"
            assert want is not None, "it is held by one"
            buckets[run.head.throttle.bucket].append((run, want))
        passes: dict[str, Pass] = {}
        async with trio.open_nursery() as nursery:
            for bucket, wanting in buckets.items():
                nursery.start_soon(self._ask_into, passes, bucket, [want for _, want in wanting])
        return [(run, happening_of(passes.get(run.origin.id), claim)) for run, _ in held]

    async def _ask_into(self, passes: dict[str, Pass], bucket: str, wants: Sequence[Want]) -> None:
        try:
            answers = await self.ask(bucket, wants)
        except StreamlineError as error:
            self._services.logger.warning("a throttle cannot be asked: %s", error)
        else:
            passes |= {want.run: answer for want, answer in zip(wants, answers, strict=True)}

    async def ask(self, bucket: str, wants: Sequence[Want]) -> list[Pass]:
        """The answers, durable; `StoreUnavailable` if that cannot be known: then nobody may begin."""
        asking = _Asking(wants)
        line = self._lines.get(bucket)
        if line is None:
            line = self._lines[bucket] = []
            self._services.spawn(lambda: self._serve(bucket))
        line.append(asking)
        await asking.told.wait()
        if asking.error is not None:
            raise asking.error
        return asking.passes

    async def _serve(self, bucket: str) -> None:
        """Answer all who ask, as many as have come at a time, until nobody does."""
        line = self._lines[bucket]
        known: tuple[SideDoc, float] | None = None
        try:
            while line:
                group, line[:] = line[:_AT_ONCE], line[_AT_ONCE:]
                try:
                    known = await self._answer(bucket, group, known)
                except StreamlineError as error:
                    _fail(group, error)
                    known = None
                except BaseException:
                    _fail(group, InvalidState("the engine has closed", action="ask a throttle"))
                    raise
                for asking in group:
                    asking.told.set()
        finally:
            del self._lines[bucket]
            _fail(line, InvalidState("the engine has closed", action="ask a throttle"))

    async def _answer(
        self, bucket: str, group: Sequence[_Asking], known: tuple[SideDoc, float] | None
    ) -> tuple[SideDoc, float]:
        """One compare-and-set for all of them; the document as it is then, and when that was known to be so."""
        services, store = self._services, self._services.store
        # A document that was removed and made anew may have the same revision: what was seen must not be old.
        if known is not None and trio.current_time() - known[1] > _SECONDS_KNOWN:
            known = None
        side = None if known is None else known[0]
        is_known = known is not None
        while True:
            if not is_known:
                side = await services.read(lambda: store.side(KIND, bucket))
            seen_at = trio.current_time()
            before = Bucket() if side is None else _decode(side.body)
            after, passes = _ask_all(before, group, services.clock.now())
            revision = None if side is None else side.revision
            body = _encode(after)
            due_at = after.forgotten_at()
            verdict = await services.committer.submit(PutSide(KIND, bucket, revision, body, due_at))
            if isinstance(verdict, Failed):
                raise verdict.error
            if isinstance(verdict, Applied):
                for asking, answers in zip(group, passes, strict=True):
                    asking.passes = answers
                self._tidy_later()
                return SideDoc(KIND, bucket, (revision or 0) + 1, body, due_at), seen_at
            is_known = False

    # --- buckets that nobody uses any more -----------------------------------------------------------------

    def _tidy_later(self) -> None:
        """On a store that nobody else can write, nothing is periodic: tidy up when the first bucket is over."""
        if self._services.store.exclusive and not self._is_tidying:
            self._is_tidying = True
            self._services.spawn(self._tidy)

    async def _tidy(self) -> None:
        services = self._services
        try:
            while sides := await services.store.sides(KIND):
                first = min((side.due_at for side in sides if side.due_at is not None), default=0)
                await trio.sleep(max((first - services.clock.now()) / 1000, _LEAST_PAUSE))
                await sweep_throttles(services)
        except StoreUnavailable as error:
            services.logger.warning("throttles that are over are left: %s", error)
        finally:
            self._is_tidying = False


def happening_of(answer: Pass | None, claim: Claimed) -> Claimed | Slotted | None:
    """What an answer comes to for a run that is to be claimed."""
    if answer is None:
        return None
    if answer.answer == "begins":
        return msgspec.structs.replace(claim, begins_at=answer.at)
    return Slotted(at=answer.at, held=answer.answer == "held")


def _ask_all(before: Bucket, group: Sequence[_Asking], now: int) -> tuple[Bucket, list[list[Pass]]]:
    """The answers to each; those who have a slot come before those who are new."""
    wants = [(want, place) for place, asking in enumerate(group) for want in asking.wants]
    order = sorted(range(len(wants)), key=lambda number: wants[number][0].slot is None)
    after, answers = ask(before, [wants[number][0] for number in order], now)
    given = dict(zip(order, answers, strict=True))
    passes: list[list[Pass]] = [[] for _ in group]
    for number, (_, place) in enumerate(wants):
        passes[place].append(given[number])
    return after, passes


def _fail(group: Sequence[_Asking], error: StreamlineError) -> None:
    for asking in group:
        asking.error = error
        asking.told.set()


async def sweep_throttles(services: Services) -> None:
    """Remove the buckets that nothing has passed for a window, unless somebody is faster to use one again."""
    now, after = services.clock.now(), ""
    while page := await services.store.sides(KIND, after=after, due_before=now, limit=_SWEPT_AT_ONCE):
        for side in page:
            services.committer.post(PutSide(KIND, side.key, side.revision, None), _forget)
        after = page[-1].key


def _forget(_outcome: Outcome) -> None:
    """What could not be removed is removed by the next sweep."""
