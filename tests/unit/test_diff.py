import hypothesis.strategies as st
import pytest
from hypothesis import given
from msgspec.structs import replace

from streamline_trio._core.codec import join, split
from streamline_trio._core.diff import changed
from streamline_trio._core.documents import Memo, StepDoc
from streamline_trio._core.errors import ValidationError
from tests.stores.strategies import heads, maps, payloads, runs
from tests.unit.test_codec import RUN


@given(runs, runs)
def test_changes_turn_one_run_into_any_other(before, after):
    """Applied to the parts of the one, the changes give exactly the parts of the other."""
    parts = split(before)
    for name, body in changed(before, after).items():
        if body is None:
            del parts[name]
        else:
            parts[name] = body
    assert parts == split(after)


@given(runs, st.data())
def test_a_commit_costs_what_it_changes(run, data):
    """Only parts whose content differs are written, and only parts that exist are removed."""
    fields = {"head": heads, "state": payloads, **maps}
    chosen = data.draw(st.sets(st.sampled_from(sorted(fields)), max_size=2))
    after = replace(run, **{name: data.draw(fields[name]) for name in sorted(chosen)})
    old, new = split(run), split(after)
    expected = {name: new.get(name) for name in old | new if old.get(name) != new.get(name)}
    assert changed(run, after) == expected


@given(runs)
def test_equal_runs_have_no_changes(run):
    """An equal run made of other objects needs no write."""
    assert changed(run, join(split(run))) == {}


class Untouchable(dict[str, StepDoc]):
    def items(self):
        raise AssertionError("a map that is the same object was walked")

    __iter__ = items


def test_a_shared_map_is_not_walked():
    """A map that both versions share costs nothing, however many entries it has."""
    shared = replace(RUN, steps=Untouchable(a=StepDoc()))
    after = replace(shared, head=replace(RUN.head, revision=2))
    assert set(changed(shared, after)) == {"head"}


def test_only_the_changed_entry_is_encoded():
    """In a map of many entries, only the entry that changed is written."""
    many = {str(n): StepDoc(attempts=n) for n in range(1000)}
    before = replace(RUN, steps=many)
    after = replace(RUN, steps={**many, "7": StepDoc(status="done")})
    assert set(changed(before, after)) == {"step/7"}


def test_a_change_that_cannot_be_encoded_is_refused_by_name():
    """A changed part without a stored form raises ValidationError."""
    with pytest.raises(ValidationError, match="run 'r1' cannot be encoded"):
        changed(RUN, replace(RUN, steps={**RUN.steps, "\ud800": StepDoc()}))


def test_only_touched_entries_are_compared():
    """Where it is said which entries may differ, the others are not looked at; a map not named is not either."""
    before = replace(RUN, steps={"a": StepDoc(), "b": StepDoc()}, memos={})
    after = replace(before, steps={"a": StepDoc(attempts=1)}, memos={"key": Memo(step="a", value=b"")})
    assert set(changed(before, after, {"steps": {"b"}})) == {"step/b"}
    assert set(changed(before, after)) == {"step/a", "step/b", "memo/key"}
