"""What a store hears of the writes of others, and what becomes of writes whose answer is lost."""

import logging
import threading
from typing import Any
from urllib.parse import urlsplit

import pymongo
import pytest
import trio
from pymongo.errors import OperationFailure

from streamline_trio._core.errors import StoreUnavailable
from streamline_trio._core.store import Applied, Hint, Insert, PutSide, Update
from streamline_trio.stores.mongo import _stream
from streamline_trio.testing._conformance_base import after, moved, sample
from tests.mongo_proxy import Proxy
from tests.stores.mongo_opening import LARGE, Commands, opened


class Heard:
    """Hints as they come, and a way to wait for one."""

    def __init__(self):
        self.hints = []
        self._came = trio.Event()

    def __call__(self, hint):
        self.hints.append(hint)
        self._came.set()

    async def wait_for(self, hint):
        while hint not in self.hints:
            self._came = trio.Event()
            await self._came.wait()


@pytest.fixture
def short_patience(monkeypatch):
    """Closing waits for the server no longer than this."""
    monkeypatch.setattr(_stream, "PATIENCE", 0.05)


@pytest.mark.usefixtures("short_patience")
async def test_others_hear_of_what_concerns_them(databases):
    """A run that falls due, calls its holder or settles is told to other processes; beats and progress are not."""
    url = databases.url()
    async with opened(url) as writer, opened(url, change_streams=True) as listener:
        heard = Heard()
        listener.watch(heard)
        run = sample("r1", due_at=7)
        held = after(run, due_at=None, worker="w")
        moving = after(held, state=b"\x01")
        asked = after(moving, attention=True)
        done = after(asked, worker=None, attention=False, status="done")
        await writer.write([Insert(run)])
        for before, now in ((run, held), (held, moving), (moving, asked), (asked, done)):
            await writer.write([Update(before, now), PutSide("worker", str(now.head.revision), None, b"\xc0", 5)])
        with trio.fail_after(10):
            await heard.wait_for(Hint(run_id="r1", settled=True))
        assert heard.hints == [
            Hint(run_id="r1", due_at=7),
            Hint(run_id="r1", worker="w"),
            Hint(run_id="r1", settled=True),
        ]


@pytest.mark.usefixtures("short_patience")
async def test_a_stream_begins_again_where_it_broke_off(databases, proxied, caplog):
    """Nothing that was written while the connection was down stays unheard."""
    url = databases.url()
    async with opened(url) as writer, opened(proxied(url), change_streams=True) as listener:
        heard = Heard()
        listener.watch(heard)
        for number in range(3):
            proxied.proxy.lose("getMore")
            await writer.write([Insert(sample(f"r{number}", due_at=number))])
            with trio.fail_after(20):
                await heard.wait_for(Hint(run_id=f"r{number}", due_at=number))
        assert [hint.due_at for hint in heard.hints] == sorted({hint.due_at for hint in heard.hints})


class Changes:
    """A stand-in for a collection whose change stream behaves as told, one entry per attempt."""

    full_name = "x.runs"

    def __init__(self, *behaviours):
        self.behaviours = list(behaviours)
        self.asked = []

    def watch(self, _pipeline, *, resume_after, max_await_time_ms):
        del max_await_time_ms
        self.asked.append(resume_after)
        behaviour = self.behaviours.pop(0)
        if isinstance(behaviour, Exception):
            raise behaviour
        return behaviour


def test_a_server_without_change_streams_is_left_alone(caplog):
    """On a standalone server the store says so once, at no more than info, and ends the thread."""
    changes: Any = Changes(OperationFailure("only supported on replica sets", 40573))
    caplog.set_level(logging.INFO, "streamline_trio")
    stream = _stream.Stream(changes, lambda _hint: None)
    stream.start(5)
    stream._thread.join(5)  # it ends by itself at the last error
    assert not stream._thread.is_alive()
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_a_history_that_is_lost_begins_anew(monkeypatch):
    """A token that the server does not know any more is dropped; another error keeps it."""
    monkeypatch.setattr(_stream, "_FIRST_PAUSE", 0.0)
    changes: Any = Changes(OperationFailure("", 9), OperationFailure("", 286), OperationFailure("", 40573))
    stream = _stream.Stream(changes, lambda _hint: None)
    stream._token = {"_data": "0"}
    stream.start(5)
    stream._thread.join(5)  # it ends by itself at the last error
    assert not stream._thread.is_alive()
    assert changes.asked == [{"_data": "0"}, {"_data": "0"}, None]


class Breaks:
    """A change stream that listens, and breaks off at the second question."""

    alive = True
    resume_token = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def try_next(self):
        if self.resume_token is not None:
            raise OperationFailure("", 9)
        self.resume_token = {"_data": "0"}


class Pauses(threading.Event):
    """The pauses that were asked for; none is made."""

    def __init__(self):
        super().__init__()
        self.made = []

    def wait(self, timeout=None):
        self.made.append(timeout)
        return self.is_set()


def test_a_stream_that_has_listened_begins_again_soon():
    """Pauses grow while the server is away, and are short again at the first break after it was there."""
    away = [OperationFailure("", 9) for _ in range(3)]
    changes: Any = Changes(*away, Breaks(), Breaks(), *away, OperationFailure("only on replica sets", 40573))
    stream = _stream.Stream(changes, lambda _hint: None)
    pauses = stream._ends = Pauses()
    stream.start(5)
    stream._thread.join(5)  # it ends by itself at the last error
    assert not stream._thread.is_alive()
    broken_off = [pause for pause in pauses.made if pause > _stream._LEAST_PAUSE]
    first = broken_off[0]
    assert 0.05 <= first <= 0.15, "every process has a pace of its own"
    assert [round(pause / first, 6) for pause in broken_off] == [1, 2, 4, 1, 1, 2, 4, 8]


# --- lost answers ------------------------------------------------------------------------------------------------


class Proxied:
    """URLs that lead through a proxy."""

    def __init__(self, url):
        port = urlsplit(url).port
        assert port is not None
        self._port = port
        self.proxy = Proxy(port)

    def __call__(self, url, **options):
        for name, value in options.items():
            url = url.replace(f"{name}=false", f"{name}={value}")
        return url.replace(f":{self._port}", f":{self.proxy.port}")


@pytest.fixture
def proxied(mongo_server):
    found = Proxied(mongo_server)
    yield found
    found.proxy.close()


async def test_a_write_whose_answer_is_lost_is_found_by_a_linearizable_read(databases, proxied):
    """The write raises StoreUnavailable though it was applied; reads of one document are certain from then on."""
    concerns = []

    class Concerns(Commands):
        def started(self, event):
            if event.command_name == "find":
                concerns.append(event.command["readConcern"]["level"])

    url = proxied(databases.url())
    client: pymongo.MongoClient[Any] = pymongo.MongoClient(url, event_listeners=[Concerns()])
    with client:
        async with opened(client.get_default_database()) as store:
            run = sample("r1")
            await store.write([Insert(run)])
            assert await store.load("r1") == run
            proxied.proxy.lose("bulkWrite")
            with pytest.raises(StoreUnavailable):
                await store.write([Update(run, after(run, paused=True)), PutSide("k", "s", None, b"\xc0")])
            assert proxied.proxy.lost == 1
            assert await store.load("r1") == after(run, paused=True)
            side = await store.side("k", "s")
            assert side is not None
            assert side.revision == 1
    assert concerns == ["majority", "linearizable", "linearizable"]


async def test_the_driver_repeats_a_write_whose_answer_is_lost_only_once(databases, proxied):
    """A write that the driver repeats counts as applied, also where the server does not remember the first time."""
    url = proxied(databases.url(), retryWrites="true")
    async with opened(url) as store:
        run = sample("r1")
        await store.write([Insert(run), Insert(sample("r2"))])
        proxied.proxy.lose("bulkWrite")
        updates = [
            Update(run, after(run, paused=True, commits=(7,))),
            moved(sample("r2"), commits=(8,), state=LARGE),
        ]
        assert await store.write(updates) == [Applied(), Applied()]
        assert proxied.proxy.lost == 1
        assert await store.load_many(["r1", "r2"]) == [update.after for update in updates]
