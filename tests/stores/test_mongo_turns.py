"""Turns on MongoDB: databases of earlier releases, and how many questions a look takes."""

from streamline_trio._core.store import Insert, Quarantine, Update
from streamline_trio.testing._conformance_base import after, sample
from tests.stores.mongo_opening import ROUTE, counted, opened


async def ids_in_turn(store, now, limit=9):
    return [run.id for run in await store.due_in_turn([ROUTE], now, None, limit)]


async def test_a_database_of_an_earlier_release_gets_turns(databases):
    """Proves that what was parked before there were turns has its own, at its time, once it is opened anew."""
    url = databases.url()
    async with opened(url) as store:
        await store.write(
            [
                Insert(sample("sleeping", tenant="a", due_at=90)),
                Insert(sample("due", tenant="a", due_at=5)),
                Insert(sample("held", tenant="a", worker="w")),
            ]
        )
    runs = databases.of(url).runs
    runs.drop_index("turns")
    runs.update_many({}, {"$unset": {"due_since": ""}})
    async with opened(url) as store:
        assert await ids_in_turn(store, 80) == ["due"]
        assert await ids_in_turn(store, 90) == ["due", "sleeping"]
    assert "due_since" not in runs.find_one({"_id": "held"})


async def test_the_order_goes_with_the_due_time(databases):
    """Proves that by what runs are put in order comes and goes with the due time, and survives being set aside."""
    url = databases.url()
    async with opened(url) as store:
        run = sample("r1", due_at=5)
        await store.write([Insert(run)])
        await store.write([Quarantine("r1")])
        again = after(run, due_at=7)
        await store.write([Update(run, again)])
        assert await ids_in_turn(store, 7) == ["r1"]
        held = after(again, due_at=None, worker="w")
        await store.write([Update(again, held)])
    stored = databases.of(url).runs.find_one({"_id": "r1"})
    assert not {"due_since", "due_at"} & stored.keys()


async def test_a_look_asks_a_question_for_each_noisy_tenant(databases):
    """Proves that tenants with little to do are found together, and one with much is passed by one question."""
    async with counted(databases) as (store, commands):
        noisy = [sample(f"n{n:02}", tenant="b", due_at=n + 1) for n in range(40)]
        quiet = [sample(f"q-{name}", tenant=name, due_at=1) for name in "acdef"]
        await store.write([Insert(run) for run in [*noisy, *quiet]])
        commands.take()
        assert await ids_in_turn(store, 99, 8) == ["q-a", "n00", "q-c", "q-d", "q-e", "q-f", "n01", "n02"]
        # The first tenant and part of the second, all of that, the others, those without one; and the documents.
        assert commands.take() == ["find"] * 5
