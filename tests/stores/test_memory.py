import trio

from streamline_trio._core.store import Applied, Delete, Hint, Insert, PutSide, Route, Update
from streamline_trio.stores.memory import MemoryStore
from streamline_trio.testing._conformance_base import after, sample


class Counted(list[tuple[int, str]]):
    """A list that counts how often an entry is looked at."""

    looks = 0

    def __getitem__(self, at):
        self.looks += 1
        return super().__getitem__(at)


def test_content_outlives_a_trio_run():
    """What one trio run wrote, the next one reads from the same store object."""
    store = MemoryStore()
    run = sample("r1", due_at=5)
    assert trio.run(store.write, [Insert(run)]) == [Applied()]
    assert trio.run(store.due, [Route("w", "1")], 5, 9) == [run]


def test_a_lock_ends_with_its_trio_run():
    """A worker whose trio run was cut is gone, as a worker whose process died; so is one that never was."""
    store = MemoryStore()

    async def hold():
        await store.hold_worker("w")
        assert not await store.worker_gone("w")
        assert await store.worker_gone("never")

    trio.run(hold)
    assert trio.run(store.worker_gone, "w")


async def test_a_dropped_lock_is_told():
    """Dropping a lock makes its worker gone and tells listeners, once."""
    store = MemoryStore()
    heard: list[Hint] = []
    store.watch(heard.append)
    await store.hold_worker("w")
    await store.drop_worker("w")
    await store.drop_worker("w")
    assert await store.worker_gone("w")
    assert heard == [Hint(run_id="", worker="w")]


def test_a_listener_of_a_past_trio_run_is_dropped():
    """A listener whose trio run was cut neither breaks a write nor is called by it."""
    store = MemoryStore()
    heard: list[Hint] = []

    async def watch():
        store.watch(heard.append)
        await store.write([Insert(sample("r1", due_at=1))])

    trio.run(watch)
    assert trio.run(store.write, [Insert(sample("r2", due_at=2))]) == [Applied()]
    assert [hint.run_id for hint in heard] == ["r1"]


async def test_hints_say_what_engines_wait_for():
    """A hint names the due time, the holder that is wanted, or the end; what interests nobody gives none."""
    store = MemoryStore()
    heard: list[Hint] = []
    store.watch(heard.append)
    new = sample("r1", status="draft", due_at=1)
    held = after(new, status="running", due_at=None, worker="w")
    asked = after(held, attention=True)
    done = after(asked, worker=None, attention=False, status="done")
    await store.write([Insert(new)])
    for before, now in ((new, held), (held, asked), (asked, done)):
        await store.write([Update(before, now)])
    await store.write([PutSide("schedule", "s", None, b"", 7), PutSide("worker", "w", None, b"")])
    await store.write([Delete("r1", done.head.revision)])
    assert heard == [
        Hint(run_id="r1", due_at=1),
        Hint(run_id="r1", worker="w"),
        Hint(run_id="r1", settled=True),
        Hint(run_id="", due_at=7),
    ]


async def test_many_sleepers_do_not_slow_the_queue():
    """With 100,000 sleepers, asking what is due looks at a few dozen entries, not at all of them."""
    store = MemoryStore()
    await store.write([Insert(sample(f"s{number}", due_at=1000 + number)) for number in range(100_000)])
    await store.write([Insert(sample("now", due_at=5))])
    route = Route("w", "1")
    priorities = store._content.due._routes[route]
    priorities[0] = entries = Counted(priorities[0])
    assert await store.due([route], 500, 100) == [sample("now", due_at=5)]
    assert await store.next_due([route]) == 5
    assert entries.looks < 50


async def test_a_write_is_cancelled_before_it_begins_or_not_at_all():
    """A cancelled caller's write is not applied; the checkpoint stands before the write."""
    store = MemoryStore()
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.write([Insert(sample("r1"))])
    assert scope.cancelled_caught
    assert await store.load("r1") is None


def test_simulations_can_have_it_shared():
    """The store says that it is exclusive unless it was made not to be."""
    assert MemoryStore().exclusive
    assert not MemoryStore(exclusive=False).exclusive
