"""Any run, and anything a migration may ask for: refused without a trace, or a sound run of the new version."""

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
from hypothesis import given, note, settings

from streamline_trio._core.codec import split
from streamline_trio._core.decide import decide
from streamline_trio._core.diff import changed
from streamline_trio._core.documents import RunDoc
from streamline_trio._core.errors import InvalidState, StreamlineError, ValidationError
from streamline_trio._core.happenings import CheckpointSaved, Memoized, Migrated, WentTo
from streamline_trio._core.plan import Plan
from streamline_trio._core.status import FINISHED_STEP, SETTLED
from streamline_trio.testing._laws import check_growth, check_state
from tests.unit.story import Story, human, pack, plan_of, timer, waits_for

OLD = "abcde"
NEW = "abcdefgh"

ACTS: dict[str, Callable[[Story], object]] = {
    "finish": lambda story: story.finishes("done"),
    "fail": lambda story: story.fails(),
    "sleep": lambda story: story.suspends(timer(story.now + 500)),
    "ask": lambda story: story.suspends(human()),
    "listen": lambda story: story.suspends(waits_for()),
    "answer": lambda story: story.answers(),
    "hear": lambda story: story.hears(id=str(story.commit)),
    "keep": lambda story: story.held(CheckpointSaved, name="n", value=pack(1)),
    "remember": lambda story: story.held(Memoized, key=f"m{story.head.current_step}", value=pack(1)),
    "back": lambda story: story.held(WentTo, target=story.plan.first),
    "forth": lambda story: story.held(WentTo, target=story.plan.steps[-1].id),
    "release": lambda story: story.hands_back(),
}
"""What happens to a run, by whoever can make it happen."""

actions = st.lists(st.sampled_from(["finish", *ACTS]), max_size=14)
new_steps = st.lists(st.sampled_from(NEW), unique=True, min_size=1, max_size=8).map("".join)
renamings = st.dictionaries(st.sampled_from(NEW), st.sampled_from(OLD), max_size=6)


def lived(actions: list[str], *, draft: bool) -> Story:
    """A run of the old version that is due, if it can be; what could not happen did not."""
    story = Story(plan_of(OLD), draft=draft)
    story.commit = 100
    for action in actions:
        try:
            if story.head.lease is None and story.head.due_at is not None:
                story.at_due().claims()
            ACTS[action](story)
        except (StreamlineError, AssertionError):
            continue
    if story.head.lease is not None:
        story.hands_back()
    if story.head.due_at is not None:
        story.at_due()
    return story


@st.composite
def wishes(draw: st.DrawFn) -> tuple[Story, Plan, Migrated]:
    """A run, the plan of another version, and what its migration asks for."""
    happened = draw(actions)
    story = lived(happened, draft=not happened and draw(st.booleans()))
    steps = draw(new_steps)
    ids = draw(renamings)
    if draw(st.booleans()):
        ids = {step: step for step in story.run.steps} | ids
    current = draw(st.sampled_from([*steps, story.head.current_step, None]))
    done = sorted(new for new, old in ids.items() if story.run.step(old).status == "done")
    changed_ones = draw(st.sets(st.sampled_from(done))) if done else set[str]()
    outputs = {step: pack("other") for step in sorted(changed_ones)}
    wish = Migrated(worker="w9", steps=ids, current_step=current, outputs=outputs)
    return story, plan_of(steps, version="2"), wish


@settings(max_examples=400)
@given(wishes())
def test_a_migration_is_refused_or_sound(wished):
    """Proves that whatever is asked, no finished step runs again, nothing is half moved, and every law holds."""
    story, plan, wish = wished
    before, stored = story.run, split(story.run)
    note(f"{before.head.status} at {before.head.current_step}")
    after = _decided(story, plan, wish)
    assert split(before) == stored
    if after is None:
        return
    assert after.head.version == "2"
    check_growth(before, after)
    check_state(after, plan)
    _check_kept(before, after, wish)
    _check_end(after, plan)


def _decided(story: Story, plan: Plan, wish: Migrated) -> RunDoc | None:
    """The run of the new version; None if that was refused, with reason."""
    before = story.run
    try:
        decision = decide(before, wish, plan, story.now, 10**6)
    except ValidationError as error:
        note(f"refused: {error}")
        return None
    except InvalidState:
        if before.head.status not in SETTLED and before.head.due_at is not None:
            raise
        return None
    assert changed(before, decision.run, decision.touched) == changed(before, decision.run), "untold changes"
    return decision.run


def _check_kept(before: RunDoc, after: RunDoc, wish: Migrated) -> None:
    """What had finished is finished under its new id, or was left out; memos all stay."""
    for new, old in wish.steps.items():
        was = before.step(old)
        if was.status in FINISHED_STEP:
            now = after.steps[new]
            assert (now.status, now.position, now.generation) == (was.status, was.position, was.generation)
            assert now.output == wish.outputs.get(new, was.output)
    assert {key: memo.value for key, memo in after.memos.items()} == {
        key: memo.value for key, memo in before.memos.items()
    }
    assert after.inbox == before.inbox
    assert after.seen == before.seen


def _check_end(after: RunDoc, plan: Plan) -> None:
    """Driven on, it comes to its end, and nothing begins that had finished before."""
    finished = {step_id for step_id, step in after.steps.items() if step.status in FINISHED_STEP}
    story = Story(plan)
    story.run, story.commit, story.now = after, 10**7, after.head.updated_at
    for _ in plan.steps:
        if story.status in SETTLED:
            break
        current: Any = story.head.current_step
        assert current not in finished, "a finished step runs again"
        story.finishes(current)
        check_state(story.run, plan)
    assert story.status == "done"
