"""The bucket as a state machine: whatever happens to it in whatever order, it never lets one too many in."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streamline_trio._core.slots import EMPTY, SlotBucket, decode_bucket, encode_bucket, entered, told, without

names = st.sampled_from(["a", "b", "c", "d", "e"])
acquisitions = st.integers(1, 3)
limits = st.integers(1, 4)


class Buckets(RuleBasedStateMachine):
    """Beside the bucket a plain set of who is in, by the rules as one would say them."""

    def __init__(self) -> None:
        super().__init__()
        self.bucket = EMPTY
        self.inside: dict[str, int] = {}
        self.knows: set[str] = set()

    @rule(name=names, acquisition=acquisitions, limit=limits)
    def enter(self, name: str, acquisition: int, limit: int) -> None:
        after = entered(self.bucket, name, acquisition, limit)
        is_in = self.inside.get(name) == acquisition
        others = [other for other in self.inside if other != name]
        assert (after is None) == (not is_in and len(others) >= limit)
        if after is None:
            return
        assert is_in <= (after is self.bucket)
        assert is_in or len(after.holders) <= limit
        self.bucket = after
        self.inside[name] = acquisition
        if not is_in:
            self.knows.discard(name)

    @rule(entries=st.lists(st.tuples(names, acquisitions), max_size=4))
    def leave(self, entries: list[tuple[str, int]]) -> None:
        gone = {name for name, acquisition in entries if self.inside.get(name) == acquisition}
        self.bucket = without(self.bucket, entries)
        self.inside = {name: number for name, number in self.inside.items() if name not in gone}
        self.knows -= gone

    @rule(who=st.sets(names))
    def tell(self, who: set[str]) -> None:
        self.bucket = told(self.bucket, who)
        self.knows |= who & set(self.inside)

    @rule()
    def store(self) -> None:
        body = encode_bucket(self.bucket)
        assert (body is None) == (not self.inside)
        if body is not None:
            assert decode_bucket(body) == self.bucket
        else:
            self.bucket = SlotBucket()

    @invariant()
    def it_holds_who_is_in(self) -> None:
        assert self.bucket.holders == self.inside
        assert set(self.bucket.untold) == set(self.inside) - self.knows
        assert len(set(self.bucket.untold)) == len(self.bucket.untold)


TestBuckets = Buckets.TestCase
TestBuckets.settings = settings(stateful_step_count=30)
TestBuckets.__doc__ = "Proves that a bucket holds exactly who came in and has not left, and never more than fit."
