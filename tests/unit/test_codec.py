from contextlib import suppress

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from streamline_trio._core.codec import join, split
from streamline_trio._core.documents import Head, Memo, Message, Origin, Record, RunDoc, StepDoc
from streamline_trio._core.errors import DataCorruption, ValidationError
from tests.stores.strategies import runs

RUN = RunDoc(
    origin=Origin(id="r1", workflow="w", start_id=1, created_at=5, input=b"\x01"),
    head=Head(version="1", fingerprint="f", status="running", updated_at=5),
    state=b"\x80",
    steps={"a/b": StepDoc(status="done", output=b"\x02")},
    records={"k": Record(kind="timer", ask="t", attempt=1, place=0, opened_at=5)},
    checkpoints={"a/b/c": b"\x03"},
    memos={"": Memo(step="a", value=b"\x04")},
    inbox={"1": Message(signal="s", payload=b"", id="m", at=5)},
    seen={"s": 7},
)


@given(runs)
def test_what_is_read_equals_what_was_written(run):
    """A run that was split and joined again is equal to the one before, whatever its keys are."""
    assert join(split(run)) == run


def test_parts_are_named_by_kind_and_key():
    """Each map entry is a part of its own, so that a commit can write it alone."""
    assert set(split(RUN)) == {
        "head",
        "origin",
        "state",
        "step/a/b",
        "record/k",
        "checkpoint/a/b/c",
        "memo/",
        "inbox/1",
        "seen/s",
    }


def test_payloads_are_stored_as_they_are():
    """State and checkpoints are raw payload bytes, readable by any tool that reads msgpack."""
    parts = split(RUN)
    assert parts["state"] == b"\x80"
    assert parts["checkpoint/a/b/c"] == b"\x03"


@pytest.mark.parametrize("part", [part for part in split(RUN) if part not in {"state", "checkpoint/a/b/c"}])
def test_a_damaged_part_is_named(part):
    """A part that does not decode is reported with the run and the part."""
    with pytest.raises(DataCorruption) as caught:
        join({**split(RUN), part: b"\xc1"}, "r1")
    assert caught.value.meta == {"run": "r1", "part": part}
    assert "r1" in str(caught.value)
    assert part in str(caught.value)


@pytest.mark.parametrize("part", ["head", "origin", "state"])
def test_a_missing_part_is_named(part):
    """A run without one of its single parts is corrupt, not half a run."""
    parts = split(RUN)
    del parts[part]
    with pytest.raises(DataCorruption, match="missing") as caught:
        join(parts)
    assert caught.value.meta["part"] == part


def test_parts_of_another_run_are_corruption():
    """Parts filed under the wrong run do not pass for that run."""
    with pytest.raises(DataCorruption, match="belongs to run 'r1'"):
        join(split(RUN), "r2")


@given(st.dictionaries(st.text(max_size=8), st.binary(max_size=8), max_size=4))
def test_any_damage_is_data_corruption_or_a_run(parts):
    """Whatever bytes stand in the parts, joining them raises nothing but DataCorruption."""
    with suppress(DataCorruption):
        join({**split(RUN), **parts})


def test_fields_and_parts_of_a_later_release_are_ignored():
    """A document with additions that this release does not know still loads."""
    parts = split(RUN)
    head = msgspec.msgpack.decode(parts["head"])
    later = {**parts, "head": msgspec.msgpack.encode({**head, "novelty": 1}), "novelty/x": b"\xc1"}
    assert join(later) == RUN


@pytest.mark.parametrize(
    "run",
    [
        msgspec.structs.replace(RUN, steps={"\ud800": StepDoc()}),
        msgspec.structs.replace(RUN, head=msgspec.structs.replace(RUN.head, pause_reason="\ud800")),
        msgspec.structs.replace(RUN, seen={"s": 2**80}),
    ],
)
def test_what_cannot_be_encoded_is_refused_by_name(run):
    """A run that holds something without a stored form raises ValidationError before anything is written."""
    with pytest.raises(ValidationError, match="run 'r1' cannot be encoded"):
        split(run)
