"""The first version of a run."""

import pytest

from streamline_trio._core.documents import Lease, Scheduled
from streamline_trio._core.due import NOW
from tests.unit.story import T0, Story, pack, plan_of


def test_a_run_with_a_worker_begins_in_its_insert():
    """One write inserts the run, leases it and begins its first step: a run of N steps costs N+1 writes."""
    story = Story("ab")
    assert (story.head.revision, story.head.fence, story.head.lease) == (1, 1, Lease(worker="w1", fence=1))
    assert (story.status, story.statuses, story.head.current_step) == ("running", "running pending", "a")
    assert (story.step("a").attempts, story.step("a").worker, story.head.started_at) == (1, "w1", T0)
    assert story.events == ["workflow.started", "step.started"]
    assert [event.revision for event in story.facts] == [1, 1]
    assert story.finishes().finishes().head.revision == 3


def test_a_run_without_a_worker_is_a_draft_that_is_due_now():
    """Nothing has begun, nothing is told, and the next worker may take it."""
    story = Story("ab", draft=True)
    assert (story.status, story.head.due_at, story.head.revision, story.head.fence) == ("draft", NOW, 1, 0)
    assert (story.run.steps, story.head.started_at, story.events) == ({}, None, [])


def test_a_draft_for_later_waits_for_its_time():
    """It is due at its start, not before; the first claim begins it."""
    story = Story("a", draft=True, start_at=T0 + 5000, scheduled=Scheduled(at=T0 + 5000))
    assert story.head.due_at == T0 + 5000
    story.at_due().claims()
    assert (story.status, story.head.started_at, story.head.fence) == ("running", T0 + 5000, 1)
    assert story.events == ["workflow.started", "step.started"]


@pytest.mark.parametrize(("start_at", "deadline"), [(None, T0 + 1500), (T0 + 10_000, T0 + 11_500)])
def test_the_deadline_counts_from_when_the_run_may_begin(start_at, deadline):
    """`timeout` bounds the run, not the delay that its starter asked for; fractions round up."""
    assert Story(plan_of("a", timeout=1.5), draft=True, start_at=start_at).head.deadline == deadline


def test_the_start_id_is_its_first_commit():
    """An insert whose acknowledgement was lost is recognised by the id it was written under."""
    assert Story("a").head.commits == (7,)


def test_what_was_given_is_kept():
    """Input, state and plan version go into the document as they are."""
    story = Story(plan_of("a", version="9"), tenant="t", tags=("x",), priority=3, idempotency_key="k")
    origin = story.run.origin
    assert (origin.tenant, origin.tags, origin.priority, origin.idempotency_key) == ("t", ("x",), 3, "k")
    assert (story.run.state, story.head.version) == (pack({"n": 1}), "9")
    assert story.head.fingerprint == story.plan.fingerprint
    assert {event.tenant for event in story.facts} == {"t"}
