"""The same random program against two stores: every verdict and every read must be the same."""

import tempfile
from itertools import count
from pathlib import Path

import hypothesis.strategies as st
import msgspec
import trio
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec.structs import replace

from streamline_trio._core.documents import DebounceDoc, Lease, Memo, Message, Parent, Record, SlotDoc, StepDoc
from streamline_trio._core.status import RUN_STATUSES
from streamline_trio._core.store import (
    AppendRows,
    Cursor,
    Delete,
    Failed,
    Insert,
    PutSide,
    Quarantine,
    Route,
    RunQuery,
    Update,
)
from streamline_trio._core.tenancy import public_id
from streamline_trio.stores.memory import MemoryStore
from streamline_trio.stores.mongo import MongoStore
from streamline_trio.stores.sqlite import SqliteStore
from streamline_trio.testing._conformance_base import sample

IDS = ["", "a", "B", "é", "a/b", "\U0001f600", "r1", "r2", "r1\u241fa", "r1\u241fb"]
EVERYTHING = RunQuery()

ids = st.sampled_from(IDS)
words = st.sampled_from(["x", "y"])
maybe_words = st.none() | words
times = st.integers(0, 6)
limits = st.integers(1, 5)
payloads = st.sampled_from([b"", b"\x80", b"\x01"])
parts = st.sampled_from(["", "k", "a/b"])
routes = st.builds(Route, words, words)
route_lists = st.lists(routes, max_size=4)
sorts = st.sampled_from(["created_at", "-created_at", "updated_at", "-updated_at"])
metas = st.sampled_from([{}, {"m": 1}, {"m": 1.0, "n": None}, {"m": True}, {"m": [1, {"b": 2, "a": 1}]}])
some_tags = st.lists(words, max_size=2).map(tuple)

records = st.builds(
    Record,
    kind=st.sampled_from(["timer", "human", "signal"]),
    ask=st.just("a"),
    attempt=st.just(1),
    place=st.just(0),
    opened_at=times,
    signal=words,
    tokens=st.lists(words, max_size=2).map(tuple),
    outcome=st.sampled_from([None, None, "value"]),
)
changes = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(RUN_STATUSES),
        "version": words,
        "updated_at": times,
        "fence": st.integers(0, 2),
        "lease": st.none() | st.builds(Lease, worker=words, fence=st.integers(0, 2)),
        "due_at": st.none() | times,
        "errand_at": st.none() | times,
        "paused": st.booleans(),
        "slot": st.none()
        | st.builds(
            SlotDoc,
            bucket=words,
            limit=times,
            acquisition=times,
            ticket=times,
            state=st.sampled_from(["later", "asked", "queued", "queued", "held", "left"]),
        ),
        "attention": st.booleans(),
        "dead_lettered": st.booleans(),
        "debounce": st.none() | st.builds(DebounceDoc, key=words, first_at=times, fired=st.booleans()),
        "input": payloads,
        "pause_reason": st.sampled_from([None, "x", "\ud800"]),
        "state": payloads,
        "steps": st.dictionaries(parts, st.builds(StepDoc, attempts=times), max_size=2),
        "records": st.dictionaries(parts, records, max_size=2),
        "checkpoints": st.dictionaries(parts, payloads, max_size=2),
        "memos": st.dictionaries(parts, st.builds(Memo, step=words, value=payloads), max_size=2),
        "inbox": st.dictionaries(
            parts, st.builds(Message, signal=words, payload=payloads, id=words, at=times), max_size=2
        ),
        "seen": st.dictionaries(parts, times, max_size=2),
    },
)
origins = st.fixed_dictionaries(
    {"workflow": words, "version": words},
    optional={
        "created_at": times,
        "priority": st.integers(-1, 1),
        "tenant": maybe_words,
        "user": maybe_words,
        "idempotency_key": maybe_words,
        "tags": some_tags,
        "meta": st.sampled_from([None, b"\xc1"]) | metas.map(msgspec.msgpack.encode),
        "parent": st.none() | st.builds(Parent, run=ids, step=words),
    },
)
queries = st.builds(
    RunQuery,
    workflow=maybe_words,
    version=maybe_words,
    status=st.none() | st.lists(st.sampled_from(RUN_STATUSES), max_size=4).map(tuple),
    tenant=maybe_words,
    user=maybe_words,
    tags=some_tags,
    meta=st.none() | metas,
    parent=st.none() | ids,
    created_after=st.none() | times,
    created_before=st.none() | times,
    updated_after=st.none() | times,
    updated_before=st.none() | times,
    paused=st.none() | st.booleans(),
    waiting=st.sampled_from([None, "human", "signal", "timer"]),
    dead_lettered=st.none() | st.booleans(),
)
# With every filter at once nothing would ever match: most fields stay open.
sparse_queries = st.builds(
    lambda query, names: RunQuery(**{name: getattr(query, name) for name in names}),
    queries,
    st.sets(st.sampled_from(RunQuery.__struct_fields__), max_size=2),
)
sides = st.builds(
    PutSide, words, words, st.none() | st.integers(1, 3), st.none() | payloads, st.none() | times, times
)
appends = st.builds(
    AppendRows,
    ids,
    st.sampled_from(["log", "progress"]),
    st.lists(payloads, max_size=3).map(tuple),
    st.integers(0, 4),
    st.none() | st.integers(0, 2),
)


class Stores(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.memory = MemoryStore()
        self.other = self.make_other()
        self.revisions = count(1)
        self.known = {}
        trio.run(self.other.open)

    def make_other(self):
        """The store that is to answer like the memory store."""
        return SqliteStore(Path(self.folder.name, "runs.db"))

    def teardown(self):
        trio.run(self.other.aclose)
        self.folder.cleanup()

    def ask(self, method, *args, **kwargs):
        """The answer of both stores, which must be one."""

        async def both():
            of_memory = await getattr(self.memory, method)(*args, **kwargs)
            return of_memory, await getattr(self.other, method)(*args, **kwargs)

        of_memory, of_other = trio.run(both)
        assert of_other == of_memory
        return of_memory

    def make(self, run_id, fields, base=None):
        """A document of its own revision: equal revisions of a run mean equal content."""
        given = fields.pop("input", None)
        run = sample(run_id, **fields) if base is None else base
        if given is not None:
            run = replace(run, origin=replace(run.origin, input=given))
        head = {name: value for name, value in fields.items() if name in run.head.__struct_fields__}
        maps = {name: value for name, value in fields.items() if name in run.__struct_fields__}
        made = replace(run, head=replace(run.head, **head, revision=next(self.revisions)), **maps)
        self.known.setdefault(run_id, []).append(made)
        return made

    def draw_write(self, data, run_id):
        known = self.known.get(run_id, [])[-4:]
        kinds = ["insert", "quarantine", "delete", "update", "update", "update", "update"]
        kind = data.draw(st.sampled_from(kinds if known else ["insert", "quarantine"]))
        if kind == "insert":
            return Insert(self.make(run_id, data.draw(origins) | data.draw(changes)))
        if kind == "quarantine":
            return Quarantine(run_id)
        before = data.draw(st.sampled_from(known[::-1]))
        if kind == "delete":
            return Delete(run_id, before.head.revision)
        return Update(before, self.make(run_id, data.draw(changes), before))

    @rule(data=st.data(), run_ids=st.sets(ids, max_size=5), beside=st.lists(sides | appends, max_size=3))
    def write(self, data, run_ids, beside):
        batch = [self.draw_write(data, run_id) for run_id in sorted(run_ids)]
        batch = data.draw(st.permutations([*batch, *beside]))

        async def both():
            return await self.memory.write(batch), await self.other.write(batch)

        of_memory, of_other = (
            [type(verdict) if isinstance(verdict, Failed) else verdict for verdict in verdicts]
            for verdicts in trio.run(both)
        )
        assert of_other == of_memory

    @rule(routes=route_lists, now=times, limit=limits, skip=limits)
    def read_due(self, routes, now, limit, skip):
        self.ask("due", routes, now, limit, skip=skip)
        self.ask("next_due", routes)

    @rule(routes=route_lists, now=times, after=maybe_words, limit=limits)
    def read_due_in_turn(self, routes, now, after, limit):
        self.ask("due_in_turn", routes, now, after, limit)

    @rule(now=times, limit=limits)
    def read_errands(self, now, limit):
        self.ask("errands", now, limit)

    @rule(bucket=words, limit=limits)
    def read_queued(self, bucket, limit):
        self.ask("queued", bucket, limit)
        self.ask("count_queued", bucket)

    @rule(worker=words, attention=st.booleans(), limit=limits, after=ids)
    def read_leased(self, worker, attention, limit, after):
        self.ask("leased", worker, attention=attention, limit=limit, after=after)

    @rule(run_id=ids, limit=limits)
    def read_namesakes(self, run_id, limit):
        self.ask("namesakes", public_id(run_id), limit)

    @rule(worker=words, limit=limits, skip=st.integers(0, 3))
    def read_leased_by_priority(self, worker, limit, skip):
        self.ask("leased_by_priority", worker, limit, skip=skip)

    @rule(signal=words, tenant=maybe_words, after=ids, limit=limits)
    def read_awaiting(self, signal, tenant, after, limit):
        self.ask("awaiting", signal, tenant, after, limit)

    @rule(query=sparse_queries, sort=sorts, limit=limits, value=times, after=st.none() | ids)
    def read_found(self, query, sort, limit, value, after):
        cursor = None if after is None else Cursor(value, after)
        self.ask("find", query, sort=sort, limit=limit, after=cursor)
        self.ask("count", query)

    @rule(kind=words, after=parts, due=st.none() | times, limit=limits)
    def read_sides(self, kind, after, due, limit):
        self.ask("sides", kind, after=after, due_before=due, limit=limit)
        self.ask("side", kind, after)

    @rule(run_id=ids)
    def read_rows(self, run_id):
        self.ask("rows", run_id, "log")
        self.ask("rows", run_id, "progress")

    @rule(word=words)
    def read_by_token(self, word):
        self.ask("by_token", word)

    @invariant()
    def both_hold_the_same(self):
        self.ask("load_many", IDS)
        self.ask("find", EVERYTHING, sort="created_at", limit=99, after=None)
        self.ask("tally", 3)
        self.ask("lease_holders")
        for key in ("x", "y"):
            for workflow in ("x", "y"):
                self.ask("by_active_key", f"\n{workflow}\n{key}")


TestStores = Stores.TestCase
# An example is a whole program, so there are fewer of them than the profile has for one value.
TestStores.settings = settings(max_examples=settings().max_examples * 2 // 5, stateful_step_count=25)
TestStores.__doc__ = (
    "Whatever is written and read, in whatever order, the SQLite store answers like the memory store."
)


def test_mongo_answers_like_memory(databases):
    """Whatever is written and read, in whatever order, the Mongo store answers like the memory store."""

    class MongoStores(Stores):
        def make_other(self):
            return MongoStore(databases.url(), change_streams=False)

        def make(self, run_id, fields, base=None):
            """What cannot be stored is no base of an update: only what differs is looked at, the rest is there."""
            made = super().make(run_id, fields, base)
            if made.head.pause_reason == "\ud800":
                self.known[run_id].pop()
            return made

    # Each call is a round trip to a slow server: a failure is told as it was met, shrinking would take minutes.
    fewer = settings(
        max_examples=max(5, settings().max_examples // 8),
        stateful_step_count=20,
        phases=(Phase.explicit, Phase.generate),
    )
    run_state_machine_as_test(MongoStores, settings=fewer)
