"""The checker finds what is planted, and calls nothing wrong that has an excuse."""

from __future__ import annotations

import re

import pytest

from tests.chaos.check import LAWS, check
from tests.chaos.tale import KEY, Tale, answered, listened

PLANTED: dict[str, list[tuple[str, Tale]]] = {
    "nothing_is_unheard_of": [
        ("RuntimeError", Tale().call("cancel", 1, 2, outcome="info", error="unexpected: RuntimeError()")),
        ("run r is not found", Tale().call("read", 1, 2, outcome="fail", error="workflow.not_found")),
        ("refused", Tale().call("cancel", 1, 2, outcome="fail", error="workflow.invalid_state")),
    ],
    "starts_are_kept": [
        ("run lost was acknowledged", Tale().call("start", 1, 2, value="lost", workflow="slow", key=KEY)),
        ("nobody has started", Tale().final().final(id="other", key="job-1")),
        ("is still running", Tale().final(status="running", ended_at=None)),
        ("is leased", Tale().final(leased=True)),
    ],
    "one_run_per_key": [
        (
            "active at the same time",
            Tale()
            .call("start", 1, 2, value="other", workflow="slow", key=KEY)
            .final()
            .final(id="other", ended_at=20.0),
        ),
        (
            "seen done before",
            Tale().read(11).call("start", 12, 13, value="r", workflow="slow", key=KEY),
        ),
    ],
    "runs_end_as_they_must": [
        ("slow is cancelled", Tale().final(status="cancelled")),
        ("flaky is failed", Tale("flaky", times=3).final(status="failed")),
        ("late is failed", Tale("late", times=3).final(status="failed")),
        ("broken is failed", Tale("broken").call("retry", 1, 2).final(status="failed")),
    ],
    "one_answer_is_taken": [
        (
            "several answers",
            Tale("ask")
            .body("ask", 1, 2)
            .call("resume", 1, 2, payload="a")
            .call("answer", 1, 2, payload="b")
            .final(done=answered("a")),
        ),
        (
            "refused or never sent",
            Tale("ask")
            .body("ask", 1, 2)
            .call("resume", 1, 2, payload="a", outcome="fail", error="workflow.token_invalid")
            .final(done=answered("a")),
        ),
        (
            "acknowledged was 'b'",
            Tale("ask")
            .body("ask", 1, 2)
            .call("resume", 1, payload="a", outcome="info")
            .call("resume", 1, 2, payload="b")
            .final(done=answered("a")),
        ),
        (
            "it timed out",
            Tale("quiet").body("ask", 1, 2).call("resume", 1, 2, payload="a").final(done=answered("nobody")),
        ),
        ("is lost", Tale("ask").call("resume", 1, 2, payload="a")),
    ],
    "signals_come_once": [
        (
            "received twice",
            Tale("listen").body("listen", 1, 2).call("emit", 1, 2, payload="a").final(done=listened("a", "a")),
        ),
        ("never sent", Tale("listen").body("listen", 1, 2).final(done=listened("a"))),
        (
            "'b' is lost",
            Tale("listen")
            .body("listen", 1, 2)
            .call("emit", 1, 2, payload="a")
            .call("emit", 1, 2, payload="b")
            .final(done=listened("a")),
        ),
        (
            "'b' before 'a'",
            Tale("listen")
            .body("listen", 1, 2)
            .call("emit", 1, 2, payload="a")
            .call("emit", 3, 4, payload="b")
            .final(done=listened("b", "a")),
        ),
    ],
    "broadcasts_reach_who_waits": [
        ("is lost", Tale("herald").call("broadcast", 1, 2, payload="news")),
        (
            "nobody has sent",
            Tale("herald").body("hear", 1, 2).final(done={"hear": {"entry": "hear", "value": "news"}}),
        ),
    ],
    "the_cancelled_is_never_done": [
        ("though a cancel was acknowledged", Tale().call("cancel", 8, 9)),
    ],
    "reads_go_forward": [
        ("went back", Tale().read(1, revision=10, status="running", ended_at=None)),
        ("fence or recoveries went back", Tale().read(1, fence=10, revision=8, status="running")),
        ("without a revision", Tale().read(1, status="running")),
        ("it was cancelled and is done", Tale().read(1, revision=8, status="cancelled")),
        (
            "the output of one",
            Tale("plain").read(1, revision=8, status="running", done={"one": {"entry": "other"}}),
        ),
    ],
    "workers_leave_in_order": [("ended with status 1", _exit := Tale())],
    "every_body_ends": [
        ("not stored", Tale().body("crawl", 1, 2, run="ghost")),
        ("never ended", Tale().body("crawl", 1, None)),
    ],
    "one_holder_per_fence": [
        ("two processes under fence 1", Tale().body("crawl", 1, 2).body("crawl", 3, 4, pid=2, entry="x")),
    ],
    "fences_grow": [
        ("began after", Tale().body("crawl", 1, 2, fence=2).body("crawl", 3, 4, pid=2, entry="x")),
    ],
    "one_body_at_a_time": [
        ("at once", Tale().body("crawl", 1, 4).body("crawl", 3, 5, pid=2, fence=2, entry="x")),
        ("under one fence", Tale().body("crawl", 1, 4).body("crawl", 3, 5, entry="x")),
        (
            "at once",
            Tale().body("crawl", 1, 9).frozen(1, 2, 4).body("crawl", 3, 5, pid=2, fence=2, entry="x"),
        ),
    ],
    "none_outlives_its_run": [
        ("began after the run", Tale().body("crawl", 11, 12)),
        ("went on after the run", Tale().body("crawl", 9, 12)),
    ],
    "finished_steps_stay_finished": [
        (
            "ran again",
            Tale().body("crawl", 1, 2).body("crawl", 3, 4, fence=2, entry="x").final(outputs=["crawl"]),
        ),
        ("ran again", Tale().body("crawl", 1, 2).body("crawl", 3, 4, entry="x").final(outputs=["crawl"])),
        ("by no body", Tale().body("crawl", 1, 2, "failed").final(outputs=["crawl"])),
        ("by no body", Tale().final(outputs=["crawl"])),
        (
            "earlier generation",
            Tale("back")
            .body("one", 1, 2)
            .body("one", 3, 4, generation=1, fence=2, entry="x")
            .final(outputs=["one"]),
        ),
    ],
    "steps_come_in_order": [
        ("had returned", Tale().body("work", 1, 2)),
        ("is skipped", Tale("ask").body("ask", 1, 2).final(skipped=["ask"])),
    ],
    "attempts_are_counted": [
        ("attempted 2 times", Tale().final(attempts={"crawl": 2})),
        ("attempted 6 times", Tale("flaky").final(attempts={"fails": 6}, recoveries=1)),
        ("beyond the 1 attempts", Tale().body("crawl", 1, 2, attempt=2).final(attempts={"crawl": 1})),
    ],
    "generations_grow": [
        ("began after", Tale("back").body("one", 1, 2, generation=1).body("one", 3, 4, entry="x")),
    ],
    "once_is_remembered": [
        (
            "different values",
            Tale("once")
            .body("pay", 1, 2)
            .body("tell", 3, 4)
            .did("pay", "paid", "pay")
            .did("tell", "paid", "tell")
            .final(done={"pay": {"entry": "pay", "value": "pay"}, "tell": {"entry": "tell", "value": "tell"}}),
        ),
        (
            "nobody has made",
            Tale("once").body("pay", 1, 2).final(done={"pay": {"entry": "pay", "value": "pay"}}),
        ),
        (
            "done again",
            Tale("once")
            .body("pay", 1, 2)
            .did("pay", "paid", "pay")
            .body("tell", 3, 4, fence=2)
            .did("tell", "paid", "tell", at=3.5)
            .final(done={"pay": {"entry": "pay", "value": "pay"}}),
        ),
    ],
    "patches_are_kept": [
        (
            "by several bodies",
            Tale().did("crawl", "set", 1).did("work", "set", 1).final(state={"sets": 2, "rounds": 0}),
        ),
        ("and is 0", Tale().did("crawl", "set", 1)),
        ("2 times, of 3", Tale("patch").final(state={"sets": 2, "rounds": 0})),
    ],
    "commits_are_stored_once": [
        ("commits [8] were stored twice", Tale().final(commits=[7, 8, 9, 8])),
    ],
    "later_steps_see_what_is_stored": [
        (
            "saw ask made by other",
            Tale("ask").body("ask", 1, 2).did("use", "saw", ["ask", "other"]).final(outputs=["ask"]),
        ),
    ],
    "the_cancelled_is_stopped": [
        (
            "went on, though a cancel",
            Tale().body("crawl", 1, 5).call("cancel", 2, 2.1).final(status="cancelled"),
        ),
    ],
    "leases_are_lost_for_a_reason": [
        ("though nothing held it up", Tale().retired(1, 3)),
        ("though nothing held it up", Tale().outage(5, 6).retired(1, 3)),
        ("though nothing held it up", Tale().stalled(2, 2, 3).stuck(1, 5, 6).retired(1, 3)),
    ],
    "nothing_begins_while_paused": [
        (
            "while the run was paused",
            Tale().call("pause", 1, 2).call("unpause", 8, 9).body("crawl", 4, 5),
        ),
        (
            "while the run was paused",
            Tale("ask")
            .body("ask", 1, 1.5, "unwound")
            .call("pause", 1, 2)
            .body("ask", 4, 5, fence=2, entry="x")
            .final(done={"ask": {"entry": "x", "value": "a"}})
            .call("resume", 1, 2, payload="a"),
        ),
    ],
}
_exit.exits = {1: 1}


@pytest.mark.parametrize(
    ("law", "words", "tale"),
    [(law, words, tale) for law, planted in PLANTED.items() for words, tale in planted],
)
def test_a_planted_fault_is_found(law, words, tale):
    """Proves that the law that is broken is reported, in words that say how, and that no other law is."""
    found = check(tale.story())
    assert [violation for violation in found if violation.startswith(f"{law}: ") and words in violation], found
    assert {violation.partition(":")[0] for violation in found} <= {law, *BESIDES.get(words, ())}, found


BESIDES = {
    "it was cancelled and is done": ("runs_end_as_they_must",),
    "under one fence": ("finished_steps_stay_finished",),
    "never ended": ("none_outlives_its_run",),
}


def test_every_law_is_tried():
    """Proves that no law is without a fault that breaks it."""
    assert list(PLANTED) == [law.__name__ for law in LAWS]


@pytest.mark.parametrize(
    "tale",
    [
        pytest.param(Tale().body("crawl", 1, 2).final(outputs=["crawl"]), id="a run without faults"),
        pytest.param(
            Tale()
            .body("crawl", 1, 4.5)
            .frozen(1, 2, 4)
            .body("crawl", 3, 5, pid=2, fence=2, attempt=2, entry="x")
            .final(recoveries=1, done={"crawl": {"entry": "x"}}, attempts={"crawl": 2}),
            id="two bodies, one of a frozen process",
        ),
        pytest.param(
            Tale().body("crawl", 1, None).killed(1, 2).body("crawl", 3, 5, pid=2, fence=2, entry="x"),
            id="a body that dies with its process",
        ),
        pytest.param(
            Tale().body("crawl", 1, 4.5).stalled(1, 2, 4).body("crawl", 3, 5, pid=2, fence=2, entry="x"),
            id="two bodies, one of a process that got no time",
        ),
        pytest.param(
            Tale()
            .body("crawl", 1, 3.2)
            .stuck(1, 1.5, 2.6)
            .retired(1, 3)
            .body("crawl", 2.5, 5, pid=2, fence=2, entry="x"),
            id="two bodies, one of a worker that has just retired",
        ),
        pytest.param(
            Tale()
            .body("crawl", 1, 5, fence=2, pid=2)
            .frozen(1, 2, 6)
            .body("crawl", 6.1, 6.2, "unwound", entry="x"),
            id="a handler that a frozen process was about to enter",
        ),
        pytest.param(
            Tale("ask").body("ask", 1, 2).call("resume", 1, payload="a", outcome="info").final(done=answered("a")),
            id="a doubtful answer that was taken",
        ),
        pytest.param(
            Tale("late", times=3)
            .body("work", 0.5, 0.9)
            .body("hangs", 1, 1.401, "unwound", entry="1", attempt=1, fence=1)
            .body("hangs", 2, 2.397, "unwound", entry="2", attempt=2, fence=2)
            .body("hangs", 3, 3.401, "unwound", entry="3", attempt=3, fence=3)
            .final(status="failed", done={"work": {"entry": "work"}}, attempts={"work": 1, "hangs": 3}),
            id="a body whose time ran before it could note that it began",
        ),
        pytest.param(Tale().outage(1, 2).retired(1, 3), id="a lease that was lost with the server"),
        pytest.param(Tale().call("cancel", 9, 11), id="a cancel that came too late"),
        pytest.param(Tale().call("cancel", 1, 2).final(status="cancelled"), id="a cancel"),
        pytest.param(
            Tale()
            .call("start", 11, 12, value="other", workflow="slow", key=KEY)
            .final()
            .final(id="other", ended_at=20.0),
            id="two runs of a key, one after the other",
        ),
        pytest.param(
            Tale().call("pause", 1, 2).call("unpause", 3, 4).body("crawl", 4, 5), id="a body after a pause"
        ),
        pytest.param(
            Tale("ask")
            .body("ask", 1, 1.5, "unwound")
            .call("pause", 1, 2)
            .call("resume", 1, 2, payload="a")
            .body("ask", 4, 5, entry="x")
            .final(done={"ask": {"entry": "x", "value": "a"}}),
            id="a handler that ends its step while the run is paused",
        ),
        pytest.param(
            Tale("broken").read(1, revision=8, status="failed").call("retry", 2, 3), id="a failed run tried again"
        ),
    ],
)
def test_what_has_an_excuse_is_no_violation(tale):
    """Proves that the laws allow what a worker cannot know, and what clients were not promised."""
    assert check(tale.story()) == []


def test_a_violation_says_when_and_where():
    """Proves that a report names the run, the step, the claim and the instants."""
    (violation,) = check(Tale().body("crawl", 1, 4).body("crawl", 3, 5, pid=2, fence=2, entry="x").story())
    assert re.search(
        r"two bodies at once for 1\.00 s: r crawl attempt 1 under fence 1 \(body crawl, 1\.000 to 4\.000\)",
        violation,
    )
