"""Watches every applied write for what must hold of slots at any instant."""

from __future__ import annotations

from collections import Counter
from typing import Any

from streamline_trio._core.documents import RunDoc
from streamline_trio._core.slots import EMPTY, SLOTS, SlotBucket, decode_bucket
from streamline_trio._core.status import SETTLED
from streamline_trio._core.store import Applied, Delete, Insert, PutSide, Update, Write
from streamline_trio.testing import WrappedStore
from streamline_trio.testing._wrapped_store import Act


class Gauge(WrappedStore):
    """Around a store (or several on one content, with what they saw in common): counts slots at each write.

    What must never be is gathered in `wrong`, since an assertion inside the engine would be its business.
    """

    def __init__(self, inner: Any, *, seen: Gauge | None = None) -> None:
        super().__init__(inner)
        self.runs: dict[str, RunDoc] = {} if seen is None else seen.runs
        self.buckets: dict[str, SlotBucket] = {} if seen is None else seen.buckets
        self.wrong: list[str] = [] if seen is None else seen.wrong
        self.most: Counter[str] = Counter() if seen is None else seen.most
        self.order: list[str] = [] if seen is None else seen.order
        """The runs in the order in which they got a slot."""
        self.writes: Counter[str] = Counter() if seen is None else seen.writes

    async def around(self, name: str, args: tuple[Any, ...], act: Act) -> Any:
        reply = await act()
        if name == "write":
            for write, verdict in zip(args[0], reply, strict=True):
                if isinstance(verdict, Applied):
                    self._applied(write)
        return reply

    def _applied(self, write: Write) -> None:
        kind = type(write).__name__
        self.writes[f"{kind} {write.kind}" if isinstance(write, PutSide) else kind] += 1
        if isinstance(write, Insert | Update):
            self._stored(write.run if isinstance(write, Insert) else write.after)
        elif isinstance(write, Delete):
            self.runs.pop(write.run_id, None)
        elif isinstance(write, PutSide) and write.kind == SLOTS:
            self.buckets[write.key] = EMPTY if write.body is None else decode_bucket(write.body)
            self._check(write.key)

    def _stored(self, run: RunDoc) -> None:
        before = self.runs.get(run.id)
        if before is not None and before.head.revision > run.head.revision:
            return  # several processes: what they were told may come in another order
        self.runs[run.id] = run
        slot = run.head.slot
        if slot is None:
            return
        if slot.state == "held" and not (before and before.head.slot and before.head.slot.state == "held"):
            self.order.append(run.id)
        if run.head.lease is not None and slot.state != "held":
            self.wrong.append(f"{run.id} goes on without a slot")
        self._check(slot.bucket)

    def _check(self, name: str) -> None:
        bucket = self.buckets.get(name, EMPTY)
        holding = self.holding(name)
        self.most[name] = max(self.most[name], len(holding))
        limits = [run.head.slot.limit for run in holding if run.head.slot is not None]
        if limits and len(holding) > max(limits):
            self.wrong.append(f"{len(holding)} runs hold slots of {name!r}, whose limit is {max(limits)}")
        if bucket.limit and len(bucket.holders) > max([bucket.limit, *limits]):
            self.wrong.append(f"{name!r} has {len(bucket.holders)} entries, and its limit is {bucket.limit}")
        for run in holding:
            if run.head.slot is not None and bucket.holders.get(run.id) != run.head.slot.acquisition:
                self.wrong.append(f"{run.id} holds a slot of {name!r} and has no entry there")

    def holding(self, name: str) -> list[RunDoc]:
        """The runs that have a slot of the bucket."""
        return [run for run in self.runs.values() if _holds(run, name)]

    def check(self) -> None:
        """Nothing of what must never be has been."""
        assert not self.wrong, "\n".join(self.wrong)

    def check_at_rest(self) -> None:
        """And the buckets equal a recount, nobody queues in vain, nothing is left to be done."""
        self.check()
        for name, bucket in self.buckets.items():
            assert sorted(bucket.holders) == sorted(run.id for run in self.holding(name)), f"{name!r}: {bucket}"
        for run in self.runs.values():
            assert not run.outbox, f"{run.id}: {run.outbox}"
            slot = run.head.slot
            assert run.head.status not in SETTLED or slot is None or slot.state == "left"
            if slot is not None and slot.state == "queued" and not run.head.paused:
                assert len(self.holding(slot.bucket)) >= slot.limit, f"{run.id} queues before a free slot"


def _holds(run: RunDoc, name: str) -> bool:
    slot = run.head.slot
    return slot is not None and slot.bucket == name and slot.state == "held" and run.head.status not in SETTLED
