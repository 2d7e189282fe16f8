"""Checks of what is stored of a run, and of what is left when it is deleted: conditions 3, 13 and 16."""

from __future__ import annotations

from msgspec.structs import replace

from streamline_trio._core.codec import MAPS
from streamline_trio._core.documents import (
    RunDoc,
    StepDoc,
    active_key,
)
from streamline_trio._core.store import (
    AppendRows,
    Delete,
    Refused,
    RunQuery,
    Store,
)
from streamline_trio.testing._conformance_base import (
    Subject,
    check,
    expect,
    expect_kinds,
    moved,
    must,
    one,
    opened,
    put,
    record,
    rich_run,
    sample,
)


@check(3)
async def an_update_may_change_any_part(subject: Subject) -> None:
    """Parts are added, replaced and removed, each alone and all at once."""
    async with opened(subject) as store:
        bare, rich = sample("rich"), rich_run()
        bare = replace(bare, origin=rich.origin)
        stored = replace(rich, head=bare.head)
        await put(store, stored)
        for name in (*(kind.attribute for kind in MAPS), "state"):
            stored = await _step(store, stored, **{name: getattr(bare, name)})
        stored = await _step(store, stored, **{name: getattr(rich, name) for name in ("steps", "records", "seen")})
        fewer = {key: value for key, value in stored.steps.items() if key != "/"}
        await _step(store, stored, steps=fewer | {"a/b": StepDoc(status="running")}, error=rich.head.error)


@check(16)
async def what_is_read_equals_what_was_written(subject: Subject) -> None:
    """Every field of every part comes back equal, whatever the keys, also when it was empty or large."""
    async with opened(subject) as store:
        run = rich_run()
        await put(store, run, sample("bare", state=b"", input=b""), sample("large", state=b"\xab" * 2_000_000))
        expect(await store.load("rich"), run, "the rich run")
        expect(await store.load("bare"), sample("bare", state=b"", input=b""), "the bare run")
        expect(await store.load("large"), sample("large", state=b"\xab" * 2_000_000), "the large run")
        expect(await store.load_many(["bare", "nobody", "rich"]), [await store.load("bare"), None, run], "many")
        expect(await store.load("nobody"), None, "a run that is not there")
        expect(await store.load_many([]), [], "no runs")


@check(13)
async def deleting_removes_everything(subject: Subject) -> None:
    """After a delete nothing of the run is found by any way, and a new run under its id starts empty."""
    async with opened(subject) as store:
        run = replace(rich_run(), records={"s": record("signal", signal="s", tokens=("t",))})
        run = replace(run, head=replace(run.head, due_at=5))
        await put(store, run)
        await must(store, AppendRows("rich", "log", (b"x",), 9), AppendRows("rich", "progress", (b"x",), 9))
        expect_kinds([await one(store, Delete("rich", 2)), await one(store, Delete("nobody", 1))], Refused, Refused)
        expect(await store.load("rich"), run, "the run after refused deletes")
        await must(store, Delete("rich", 1))
        await _expect_nothing_of(store, run)
        await put(store, sample("rich", tenant="t"))
        expect(await store.load("rich"), sample("rich", tenant="t"), "a new run under the same id")
        await _expect_no_rows_of(store, run)


async def _step(store: Store, run: RunDoc, **fields: object) -> RunDoc:
    moved_on = moved(run, **fields)
    await must(store, moved_on)
    expect(await store.load(run.id), moved_on.after, f"the run after a change of {', '.join(fields)}")
    return moved_on.after


async def _expect_nothing_of(store: Store, run: RunDoc) -> None:
    expect(await store.load(run.id), None, "the run")
    expect(await store.by_active_key(active_key(run) or ""), None, "its active key")
    expect(await store.by_token("t"), None, "its token")
    expect(await store.awaiting("s", "t", "", 9), [], "its signal wait")
    expect(await store.count(RunQuery()), 0, "runs counted")
    expect(await store.count(RunQuery(meta={"a": 1}, tags=("/",))), 0, "runs counted by tag and meta")
    expect((await store.tally(10**9)).due, 0, "runs due")
    await _expect_no_rows_of(store, run)


async def _expect_no_rows_of(store: Store, run: RunDoc) -> None:
    expect(await store.rows(run.id, "log"), [], "log rows")
    expect(await store.rows(run.id, "progress"), [], "progress rows")
