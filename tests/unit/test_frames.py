"""Paths of the parts of a step."""

import hypothesis.strategies as st
from hypothesis import given

from streamline_trio._runtime.frames import Subtrees, composite, escape, frame_of, frames_of, is_in_line

texts = st.text("ab/~:#=", max_size=5)
segments = st.one_of(
    st.tuples(st.just("scatter"), st.none() | texts.filter(bool), st.integers(0, 2), texts),
    st.tuples(st.just("loop"), st.none() | texts.filter(bool), st.integers(0, 2), st.integers(0, 3).map(str)),
)
places = st.tuples(st.lists(segments, max_size=3), st.sampled_from(["=", "timer#"]), texts)


def path_of(place):
    ways, kind, leaf = place
    prefix = "".join(f"{composite(*way[:3])}:{escape(way[3])}/" for way in ways)
    return prefix, prefix + kind + leaf


def told(place):
    """What tells a place from others: a name does away with the ordinal."""
    ways, kind, leaf = place
    return [(way[0], way[1], way[2] if way[1] is None else 0, way[3]) for way in ways], kind, leaf


@given(places, places)
def test_no_two_places_share_a_path(one, other):
    """Proves that whatever keys and names are, equal paths are equal places."""
    assert (path_of(one)[1] == path_of(other)[1]) == (told(one) == told(other))


@given(places)
def test_a_path_tells_its_frames(place):
    """Proves that the frames of a path are found, outermost first, whatever is in its keys and its leaf."""
    prefix, path = path_of(place)
    assert frame_of(path) == prefix
    assert len(list(frames_of(path))) == len(place[0])
    assert all(path.startswith(frame) for frame in frames_of(path))


@given(places)
def test_a_line_ends_where_a_scatter_begins(place):
    """Proves that what is only in loops is met by the line itself, and what is in a scatter is not."""
    _, path = path_of(place)
    frames = ["", *frames_of(path)]
    for depth, frame in enumerate(frames):
        assert is_in_line(path, frame) == all(way[0] == "loop" for way in place[0][depth:])


@given(st.lists(places, max_size=8), places)
def test_all_under_a_frame_are_found_and_taken(there, place):
    """Proves that a frame gives exactly what lies in it, and that what was taken is gone from the frames around."""
    paths = {path_of(each)[1] for each in there}
    trees = Subtrees(paths)
    for frame in frames_of(path_of(place)[1]):
        under = sorted(path for path in paths if path.startswith(frame))
        assert sorted(trees.of(frame)) == under
        assert list(trees.take(frame)) == under
        paths -= set(under)
