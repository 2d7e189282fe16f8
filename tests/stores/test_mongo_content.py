import pytest
from msgspec.structs import replace

from streamline_trio._core.documents import Lease, StepDoc
from streamline_trio._core.errors import DataCorruption, PayloadTooLarge
from streamline_trio._core.store import (
    AppendRows,
    Applied,
    Delete,
    Failed,
    Insert,
    Refused,
    Update,
)
from streamline_trio.testing._conformance_base import after, moved, sample
from tests.stores.mongo_opening import LARGE, ROUTE, opened, packed

# --- large payloads ----------------------------------------------------------------------------------------------

OTHER = packed("y" * 300_000)


def payloads_of(databases, url):
    return [len(payload["body"]) for payload in databases.of(url).payloads.find()]


async def test_large_payloads_live_beside_the_run_and_go_with_it(databases):
    """They come back in the run, are replaced with it, and are removed with what no longer refers to them."""
    url = databases.url()
    async with opened(url) as store:
        run = sample("r1", state=LARGE, steps={"a": StepDoc(output=LARGE), "b": StepDoc(output=OTHER)}, due_at=1)
        assert await store.write([Insert(run)]) == [Applied()]
        assert len(databases.of(url).runs.find_one()["payloads"]) == 2
        assert sorted(payloads_of(databases, url)) == [len(OTHER), len(LARGE)]
        assert await store.load("r1") == run
        assert await store.due([ROUTE], 1, 9) == [run]
        moved_on = after(run, paused=True)
        await store.write([Update(run, moved_on)])
        fewer = after(moved_on, state=b"\xc0", steps={"a": StepDoc(output=LARGE, attempts=3)})
        assert await store.write([Update(moved_on, fewer)]) == [Applied()]
        assert payloads_of(databases, url) == [len(LARGE)]
        assert await store.load("r1") == fewer
        none = after(fewer, steps={})
        await store.write([Update(fewer, none)])
        assert payloads_of(databases, url) == []
        assert "payloads" not in databases.of(url).runs.find_one()
        again = after(none, state=OTHER)
        await store.write([Update(none, again), Insert(sample("r2", state=LARGE))])
        assert await store.write([Delete("r1", again.head.revision)]) == [Applied()]
        assert payloads_of(databases, url) == [len(LARGE)]


async def test_a_refused_write_leaves_no_payload(databases):
    """What a write has stored before it was refused is removed, and nothing of the run that won."""
    url = databases.url()
    async with opened(url) as store:
        run = sample("r1")
        await store.write([Insert(run)])
        winner = after(run, state=LARGE)
        await store.write([Update(run, winner)])
        verdicts = await store.write(
            [moved(run, state=LARGE), Insert(sample("r2", state=OTHER)), Insert(sample("r3", state=OTHER))]
        )
        assert verdicts == [Refused(), Applied(), Applied()]
        assert await store.write([Insert(sample("r2", state=OTHER))]) == [Refused()]
        assert sorted(payloads_of(databases, url)) == [len(OTHER), len(OTHER), len(LARGE)]
        assert await store.load_many(["r1", "r2"]) == [winner, sample("r2", state=OTHER)]


async def test_orphans_go_with_the_next_write_of_a_large_payload(databases):
    """What a writer that died has left of an earlier revision does not stay."""
    url = databases.url()
    async with opened(url) as store:
        run = sample("r1", state=LARGE)
        await store.write([Insert(run)])
        orphan = {"_id": 1, "run": "r1", "revision": 1, "sha256": "", "body": b"x"}
        databases.of(url).payloads.insert_one(orphan)
        await store.write([moved(run, state=OTHER)])
        assert payloads_of(databases, url) == [len(OTHER)]


async def test_a_payload_replaced_while_it_is_read_is_read_again(databases, monkeypatch):
    """A reader that meets a document whose payload is gone reads the new document."""
    async with opened(databases.url()) as store:
        run = sample("r1", state=LARGE)
        await store.write([Insert(run)])
        newer = after(run, state=OTHER)
        reader, writer = store._backend.reader, store._backend.writer
        fetch = reader._large

        def fetch_late(documents):
            monkeypatch.setattr(reader, "_large", fetch)
            assert writer.write([Update(run, newer)]) == [Applied()]
            return fetch(documents)

        for read in (store.load("r1"), store.load_many(["r1"])):
            monkeypatch.setattr(reader, "_large", fetch_late)
            assert await read in (newer, [newer])
            run, newer = newer, after(newer, state=LARGE if newer.state is OTHER else OTHER)


async def test_a_lost_payload_is_corruption(databases):
    """A run that refers to a payload that is nowhere does not decode, and harms no other."""
    url = databases.url()
    async with opened(url) as store:
        await store.write([Insert(sample("bad", state=LARGE)), Insert(sample("good"))])
        databases.of(url).payloads.delete_many({})
        with pytest.raises(DataCorruption, match="payload that is not there"):
            await store.load("bad")
        assert await store.load_many(["bad", "good"]) == [None, sample("good")]


# --- size --------------------------------------------------------------------------------------------------------


async def test_a_full_document_refuses_what_is_large_and_takes_what_is_small(databases):
    """Near 16 MB a step's output fails with PayloadTooLarge; that it failed can still be written."""
    async with opened(databases.url()) as store:
        part = packed(b"x" * 250_000)
        run = sample("r1", checkpoints={f"c{number}": part for number in range(57)})
        assert await store.write([Insert(run)]) == [Applied()]
        full, verdicts = run, [Applied()]
        while verdicts == [Applied()]:
            name = f"c{len(full.checkpoints)}"
            grown = after(full, checkpoints={**full.checkpoints, name: part})
            verdicts = await store.write([Update(full, grown)])
            full = grown if verdicts == [Applied()] else full
        (verdict,) = verdicts
        assert isinstance(verdict, Failed)
        assert isinstance(verdict.error, PayloadTooLarge)
        assert 60 < len(full.checkpoints) < 64
        failed = moved(full, status="failed", pause_reason="x" * 50_000)
        assert await store.write([Insert(sample("r2")), failed]) == [Applied(), Applied()]
        assert await store.load("r1") == failed.after


async def test_what_no_document_can_hold_fails_alone(databases):
    """A payload above 16 MB, or a run of many that are too much together, is refused before anything is sent."""
    async with opened(databases.url()) as store:
        huge = sample("huge", state=packed(b"x" * (16 << 20)))
        many = sample("many", checkpoints=dict.fromkeys(map(str, range(70)), packed(b"x" * 250_000)))
        verdicts = await store.write([Insert(huge), Insert(sample("r1")), Insert(many)])
        assert verdicts[1] == Applied()
        for verdict in (verdicts[0], verdicts[2]):
            assert isinstance(verdict, Failed)
            assert isinstance(verdict.error, PayloadTooLarge)
        assert await store.load("r1") == sample("r1")


async def test_a_wide_number_fails_alone(databases):
    """An instant that no server could hold fails its own write with one of our errors."""
    async with opened(databases.url()) as store:
        wide = sample("wide", due_at=2**63)
        verdicts = await store.write([Insert(wide), Insert(sample("r1"))])
        assert [type(verdict) for verdict in verdicts] == [Failed, Applied]
        far = sample("far", due_at=2**60)
        assert await store.write([Insert(far)]) == [Applied()]
        assert await store.load("far") == far
        assert await store.next_due([ROUTE]) is None


# --- rows --------------------------------------------------------------------------------------------------------


async def test_rows_of_an_earlier_fence_never_come_after_those_of_a_later_one(databases, monkeypatch):
    """A holder that is overtaken between the check and the append is refused by the ring itself."""
    async with opened(databases.url()) as store:
        run = sample("r1", fence=1)
        claimed = after(run, fence=2)
        await store.write([Insert(run), AppendRows("r1", "log", (packed("1"),), 9, 1)])
        writer = store._backend.writer
        send = writer._sender.send

        def send_late(orders):
            monkeypatch.setattr(writer._sender, "send", send)
            writer.write([Update(run, claimed), AppendRows("r1", "log", (packed("2"),), 9, 2)])
            send(orders)

        monkeypatch.setattr(writer._sender, "send", send_late)
        assert await store.write([AppendRows("r1", "log", (packed("late"),), 9, 1)]) == [Refused()]
        assert await store.rows("r1", "log") == [packed("1"), packed("2")]


async def test_rows_of_a_run_that_is_removed_meanwhile_are_removed(databases, monkeypatch):
    """A ring that is made after its run was removed does not stay."""
    url = databases.url()
    async with opened(url) as store:
        await store.write([Insert(sample("r1"))])
        writer = store._backend.writer
        send = writer._sender.send

        def send_late(orders):
            monkeypatch.setattr(writer._sender, "send", send)
            assert writer.write([Delete("r1", 1)]) == [Applied()]
            send(orders)

        monkeypatch.setattr(writer._sender, "send", send_late)
        assert await store.write([AppendRows("r1", "log", (packed("late"),), 9)]) == [Refused()]
        assert databases.of(url).rows.count_documents({}) == 0


async def test_a_lease_keeps_the_due_time_of_a_leased_run(databases):
    """It stands in the lease, so that no queue finds it, and comes back."""
    async with opened(databases.url()) as store:
        run = replace(sample("r1"), head=replace(sample("r1").head, lease=Lease(worker="w", fence=1), due_at=7))
        await store.write([Insert(run)])
        assert await store.load("r1") == run
        assert await store.next_due([ROUTE]) is None
        parked = after(run, worker=None)
        await store.write([Update(run, parked)])
        assert await store.due([ROUTE], 7, 9) == [parked]
