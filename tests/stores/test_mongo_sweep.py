"""What a process that died left behind in MongoDB is removed, and nothing else."""

import msgspec
import pytest
import trio
from pymongo.errors import AutoReconnect

from streamline_trio import MemoryStore, open_engine
from streamline_trio._core.store import AppendRows, Applied, Delete, Insert
from streamline_trio._runtime import care
from streamline_trio.store import Sweeper
from streamline_trio.stores.mongo import _sweep
from streamline_trio.stores.mongo._sweep import GRACE
from streamline_trio.testing import WrappedStore
from streamline_trio.testing._conformance_base import moved, sample
from tests.stores.mongo_opening import LARGE, opened, packed


class Dies(BaseException):
    """The process has no time to clear anything."""


def die(*_args):
    raise Dies


async def delete_and_die(store, monkeypatch, run_id):
    """Delete a run, and die before its payloads and rows are cleared."""
    with monkeypatch.context() as patched:
        patched.setattr("streamline_trio.stores.mongo._writer._Wave._clean_up", die)
        with pytest.raises(Dies):
            await store.write([Delete(run_id, 1)])


async def test_what_a_deleted_run_left_behind_is_removed(databases, monkeypatch):
    """Its payloads and rows go once the run has been missing for long; those of other runs stay."""
    url = databases.url()
    database = databases.of(url)
    async with opened(url) as store:
        for run_id in ("gone", "here"):
            rows = AppendRows(run_id, "log", (packed("line"),), 9)
            assert await store.write([Insert(sample(run_id, state=LARGE)), rows]) == [Applied()] * 2
        await delete_and_die(store, monkeypatch, "gone")
        sweep = store._backend.sweep
        assert [sweep.run(now) for now in (0, 10, GRACE - 1)] == [0, 0, 0]
        assert database.payloads.count_documents({}) == 2
        assert sweep.run(GRACE) == 2
        assert [payload["run"] for payload in database.payloads.find()] == ["here"]
        assert [ring["_id"] for ring in database.rows.find()] == ["log/here"]
        assert (await store.load("here")).state == LARGE
        assert [sweep.run(now) for now in (GRACE * 2, GRACE * 3)] == [0, 0]
        assert await store.sweep() == 0


async def test_what_an_update_left_behind_is_removed_at_once(databases, monkeypatch):
    """A payload that the run has replaced, or that never came to be its own, is nobody's from then on."""
    url = databases.url()
    async with opened(url) as store:
        run = sample("r1", state=LARGE)
        await store.write([Insert(run)])
        newer = moved(run, state=msgspec.msgpack.encode("y" * 400_000))
        with monkeypatch.context() as patched:
            patched.setattr("streamline_trio.stores.mongo._writer._Wave._clean_up", die)
            with pytest.raises(Dies):
                await store.write([newer])
        payloads = databases.of(url).payloads
        assert payloads.count_documents({}) == 2
        assert await store.sweep() == 1
        assert payloads.count_documents({}) == 1
        assert (await store.load("r1")).state == newer.after.state


async def test_what_is_on_its_way_stays(databases, monkeypatch):
    """The payload of a run or a revision that is just being written waits for it, however often is swept."""
    url = databases.url()
    async with opened(url) as store:
        run = sample("r1", state=LARGE)
        later = moved(run, state=msgspec.msgpack.encode("y" * 400_000))
        sweep = store._backend.sweep
        seen = []
        send = store._backend.writer._sender.send

        def late(orders):
            seen.append([sweep.run(now) for now in (0, GRACE / 2, GRACE - 1)])
            seen.append(databases.of(url).payloads.count_documents({}))
            send(orders)

        monkeypatch.setattr(store._backend.writer._sender, "send", late)
        await store.write([Insert(run)])
        await store.write([later])
        assert seen == [[0, 0, 0], 1, [0, 0, 0], 2]
        assert (await store.load("r1")).state == later.after.state
        assert sweep.run(GRACE) == 0


async def test_a_sweep_walks_on_page_by_page(databases, monkeypatch):
    """However much is stored, a sweep looks at one page; after the last it begins anew, and misses nothing."""
    monkeypatch.setattr(_sweep, "PAGE", 2)
    url = databases.url()
    async with opened(url) as store:
        for number in range(5):
            rows = AppendRows(f"r{number}", "log", (packed("line"),), 9)
            await store.write([Insert(sample(f"r{number}")), rows])
        for number in range(5):
            await delete_and_die(store, monkeypatch, f"r{number}")
        sweep, rows = store._backend.sweep, databases.of(url).rows
        assert [sweep.run(0) for _ in range(3)] == [0, 0, 0]
        removed = [sweep.run(GRACE) for _ in range(4)]
        assert sum(removed) == 5
        assert max(removed) <= 4
        assert rows.count_documents({}) == 0


async def test_an_unreachable_server_ends_a_sweep_only(databases, monkeypatch):
    """A sweep that fails goes on at the next call."""
    async with opened(databases.url()) as store:
        sweep = store._backend.sweep
        with monkeypatch.context() as patched:
            patched.setattr(_sweep._Walk, "_page", lambda _self: (_ for _ in ()).throw(AutoReconnect("gone")))
            with pytest.raises(AutoReconnect):
                sweep.run(0)
        assert sweep.run(0) == 0


class Swept(WrappedStore):
    """A store that has to be swept."""

    def __init__(self, inner):
        super().__init__(inner)
        self.times = []

    @property
    def exclusive(self):
        return False

    async def sweep(self):
        await trio.lowlevel.checkpoint()
        self.times.append(trio.current_time())
        return 1


@pytest.mark.virtual_time
async def test_workers_sweep_once_a_minute():
    """The engine sweeps a store that can be swept, seldom; one that only starts runs does not."""
    store, other = Swept(MemoryStore()), Swept(MemoryStore())
    assert isinstance(store, Sweeper)
    assert not isinstance(MemoryStore(), Sweeper)
    async with open_engine(store), open_engine(other, worker=False):
        await trio.sleep(10 * care.SWEEP_EVERY)
    assert 9 <= len(store.times) <= 10
    assert not other.times
