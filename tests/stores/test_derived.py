"""What stores derive from a run: the same whether it is told which records were touched or not."""

from typing import Any

import hypothesis.strategies as st
from hypothesis import given
from msgspec.structs import replace

from streamline_trio._core.documents import Head, Origin, Record, RunDoc
from streamline_trio.stores._derived import key_change, label_change
from streamline_trio.stores.sqlite._columns import has_moved

KEYS = "abcd"
records = st.none() | st.builds(
    lambda kind, signal, token, outcome: Record(
        kind=kind,
        ask="",
        attempt=1,
        place=0,
        opened_at=0,
        signal=signal if kind == "signal" else "",
        tokens=(token,) if kind == "human" else (),
        outcome=outcome,
    ),
    st.sampled_from(["timer", "human", "signal"]),
    st.sampled_from("st"),
    st.sampled_from(["t1", "t2"]),
    st.sampled_from([None, None, "value"]),
)
maps = st.fixed_dictionaries(dict.fromkeys(KEYS, records))


def run_with(found: dict[str, Any]) -> RunDoc:
    return RunDoc(
        origin=Origin(id="r", workflow="w", start_id=1, created_at=1, input=b""),
        head=Head(version="1", fingerprint="", status="running", updated_at=1),
        state=b"",
        records={key: record for key, record in found.items() if record is not None},
    )


@given(maps, maps, st.sets(st.sampled_from(KEYS)))
def test_what_was_touched_is_all_that_need_be_looked_at(old, new, unchanged):
    """Proves that keys, labels and columns come out the same from the touched records as from all of them."""
    before = run_with(old)
    after = run_with({key: old[key] if key in unchanged else new[key] for key in KEYS})
    touched = {"records": {key for key in KEYS if key not in unchanged}}
    for change in (key_change, label_change):
        told, untold = change(before, after, touched), change(before, after)
        assert [sorted(part) for part in told] == [sorted(part) for part in untold]
    assert has_moved(before, after, touched) == has_moved(before, after)


@given(maps, maps)
def test_a_status_that_changes_is_seen(old, new):
    """Proves that a run that settles gives up its idempotency key, whatever records were touched."""
    before = run_with(old)
    origin = replace(before.origin, idempotency_key="k")
    before = replace(before, origin=origin)
    after = replace(run_with(new), origin=origin, head=replace(before.head, status="done"))
    assert "active_key" in {key.kind for key in key_change(before, after, {"records": set(KEYS)}).lost}
