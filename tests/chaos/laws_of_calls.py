"""What must hold of what clients were told."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from tests.chaos.facts import SLACK, Facts
from tests.chaos.laws_of_bodies import SETTLED
from tests.chaos.records import NEVER, Call, Seen
from tests.chaos.workflows import ATTEMPTS, NOBODY, TIMEOUT


def nothing_is_unheard_of(facts: Facts) -> Iterator[str]:
    """No call ends in an error that its documentation does not know, and no acknowledged run is unknown."""
    for call in facts.story.calls:
        what = f"{call.request.verb} of job {call.request.job} through {call.door}"
        if call.reply.error.startswith("unexpected"):
            yield f"{what}: {call.reply.error}"
        if call.outcome == "fail" and call.reply.error == "workflow.not_found":
            yield f"{what}: run {call.request.run} is not found"
        if call.outcome == "fail" and call.request.verb in {"start", "cancel", "broadcast"}:
            yield from [f"{what}: refused with {call.reply.error}"] if call.reply.error != "closed" else []


def starts_are_kept(facts: Facts) -> Iterator[str]:
    """An acknowledged start is stored under its key; what is stored was asked for, has settled, and is free."""
    for calls in facts.starts.values():
        for call in calls:
            final = facts.finals.get(call.reply.value or "")
            if call.outcome == "ok" and (final is None or final.key != call.request.key):
                yield f"{call.request.key}: run {call.reply.value} was acknowledged, and stored is {final}"
    for final in facts.finals.values():
        if not any(call.request.workflow == final.workflow for call in facts.starts[final.key]):
            yield f"{final.id}: nobody has started {final.workflow} under {final.key!r}"
        if final.status not in SETTLED:
            yield f"{final.id}: {final.workflow} of job {final.job} is still {final.status}"
        if final.leased:
            yield f"{final.id}: is leased, though no worker is there"


def one_run_per_key(facts: Facts) -> Iterator[str]:
    """Of two runs of one key, one had settled before the other was there; no start gives a settled one."""
    for key, calls in facts.starts.items():
        runs = [final for final in facts.finals.values() if final.key == key and not facts.was_retried(final.id)]
        for first, second in combinations(runs, 2):
            if _end(first) > _known_at(facts, second) and _end(second) > _known_at(facts, first):
                yield f"{key}: {first.id} and {second.id} were active at the same time"
        for call in calls:
            if call.outcome != "ok" or facts.was_retried(call.reply.value):
                continue
            for read, found in facts.reads(call.reply.value):
                if found.status in SETTLED and read.ended < call.invoked:
                    yield f"{key}: a start gave {found.id}, which was seen {found.status} before"
                    break


def _end(final: Seen) -> float:
    return NEVER if final.ended_at is None else final.ended_at


def _known_at(facts: Facts, final: Seen) -> float:
    """When it was certainly stored, a moment's difference between two notes of one instant allowed for."""
    starts = [c.ended for c in facts.starts[final.key] if c.outcome == "ok" and c.reply.value == final.id]
    bodies = [body.at for body in facts.bodies_of(final.id)]
    reads = [call.ended for call, _ in facts.reads(final.id)]
    return min([*starts, *bodies, *reads], default=NEVER) + SLACK / 10


def runs_end_as_they_must(facts: Facts) -> Iterator[str]:
    """Done; failed where the job says so; cancelled only if somebody asked for it."""
    for final in facts.finals.values():
        job = facts.jobs[final.job]
        allowed = {"done"}
        if facts.verbs(final.id, "cancel"):
            allowed.add("cancelled")
        if final.workflow == "flaky" and job.times >= ATTEMPTS["flaky"]:
            allowed.add("failed")
        if final.workflow == "late" and _timeouts(facts, final.id) >= ATTEMPTS["late"]:
            allowed.add("failed")
        if final.workflow == "broken" and not facts.acknowledged(final.id, "retry"):
            allowed.add("failed")
        if final.status in SETTLED and final.status not in allowed:
            yield f"{final.id}: {final.workflow} is {final.status} ({final.error}), it must be {sorted(allowed)}"


def _timeouts(facts: Facts, run: str) -> int:
    """How many bodies had their time, and had not returned: a frozen process cannot either.

    The time runs from when the body is called, which is a moment before it can note that.
    """
    hung = [body for body in facts.bodies_of(run) if body.entered.step == "hangs" and body.how != "returned"]
    return sum(body.ended - body.at >= TIMEOUT - SLACK / 10 for body in hung)


def one_answer_is_taken(facts: Facts) -> Iterator[str]:
    """Of all answers to a wait at most one is acknowledged, and it is the one that the handler gets."""
    for final in facts.finals.values():
        if final.workflow not in {"ask", "quiet"}:
            continue
        taken = [call.request.payload for call in facts.acknowledged(final.id, "resume", "answer")]
        doubtful = {call.request.payload for call in facts.verbs(final.id, "resume", "answer")}
        if len(taken) > 1:
            yield f"{final.id}: several answers were acknowledged: {taken}"
        got = final.done.get("ask", {}).get("value")
        if got is None:
            if taken and final.status != "cancelled":
                yield f"{final.id}: the acknowledged answer {taken[0]!r} is lost"
        elif got == NOBODY:
            if taken:
                yield f"{final.id}: it timed out, though {taken[0]!r} was acknowledged"
        elif got not in doubtful:
            yield f"{final.id}: it got {got!r}, which was refused or never sent"
        elif taken and taken[0] != got:
            yield f"{final.id}: it got {got!r}, acknowledged was {taken[0]!r}"


def signals_come_once(facts: Facts) -> Iterator[str]:
    """Acknowledged signals are received once, in the order of their arrival; others at most once."""
    for final in facts.finals.values():
        if final.workflow != "listen" or "listen" not in final.done:
            continue
        got: list[str] = final.done["listen"]["value"]
        sent = facts.verbs(final.id, "emit")
        if len(set(got)) != len(got):
            yield f"{final.id}: a signal was received twice: {got}"
        if strange := set(got) - {call.request.payload for call in sent}:
            yield f"{final.id}: it received {sorted(strange)}, which was refused or never sent"
        for call in sent:
            if call.outcome == "ok" and call.request.payload not in got:
                yield f"{final.id}: the acknowledged signal {call.request.payload!r} is lost: {got}"
        yield from _out_of_order(final, got, sent)


def _out_of_order(final: Seen, got: list[str], sent: list[Call]) -> Iterator[str]:
    arrived = {
        name: min((c.ended for c in sent if c.request.payload == name and c.outcome == "ok"), default=NEVER)
        for name in got
    }
    for place, name in enumerate(got):
        sent_at = min((call.invoked for call in sent if call.request.payload == name), default=NEVER)
        for later in got[place + 1 :]:
            if arrived[later] < sent_at:
                yield f"{final.id}: it received {name!r} before {later!r}, which had arrived before: {got}"


def broadcasts_reach_who_waits(facts: Facts) -> Iterator[str]:
    """A run that was seen to wait gets the broadcast that was acknowledged afterwards."""
    for final in facts.finals.values():
        if final.workflow != "herald" or final.status == "cancelled":
            continue
        sent = facts.verbs(final.id, "broadcast")
        got = final.done.get("hear", {}).get("value")
        if got is None and any(call.outcome == "ok" for call in sent):
            yield f"{final.id}: an acknowledged broadcast is lost"
        if got is not None and got not in {call.request.payload for call in sent}:
            yield f"{final.id}: it heard {got!r}, which nobody has sent"


def the_cancelled_is_never_done(facts: Facts) -> Iterator[str]:
    """After an acknowledged cancel, a run is cancelled, or had settled before."""
    for run, final in facts.finals.items():
        for call in facts.acknowledged(run, "cancel"):
            late = final.ended_at is None or final.ended_at > call.ended + SLACK / 10
            if final.status != "cancelled" and late and not facts.was_retried(run):
                what = f"{final.status} at {final.ended_at}"
                yield f"{run}: {what}, though a cancel was acknowledged at {call.ended:.3f}"


def reads_go_forward(facts: Facts) -> Iterator[str]:
    """A later read sees no older run; what is settled stays, and what a finished step has left."""
    for run, final in facts.finals.items():
        reads = [(call.invoked, call.ended, found) for call, found in facts.reads(run)]
        for first, second in combinations([*reads, (NEVER, NEVER, final)], 2):
            if first[1] < second[0]:
                yield from _went_back(facts, first[2], second[2])


def _went_back(facts: Facts, before: Seen, after: Seen) -> Iterator[str]:
    what = f"{before.id}: from revision {before.revision} to {after.revision}"
    if after.revision < before.revision or after.fence < before.fence or after.recoveries < before.recoveries:
        yield f"{what}: revision, fence or recoveries went back: {before}, {after}"
    if after.revision == before.revision and after != before and not _same(before, after):
        yield f"{what}: it changed without a revision: {before}, {after}"
    if before.status in SETTLED and after.status != before.status and not facts.was_retried(before.id):
        yield f"{what}: it was {before.status} and is {after.status}"
    for step, output in before.done.items():
        if after.done.get(step) != output and before.workflow != "back":
            yield f"{what}: the output of {step} was {output} and is {after.done.get(step)}"


def _same(before: Seen, after: Seen) -> bool:
    """Equal, but for instants, which are converted between two clocks at each read."""
    return (before.status, before.fence, before.done, before.state) == (
        after.status,
        after.fence,
        after.done,
        after.state,
    )


def workers_leave_in_order(facts: Facts) -> Iterator[str]:
    """Whoever was not killed ends with status 0."""
    for pid, status in facts.story.exits.items():
        if status != 0:
            yield f"worker process {pid} ended with status {status}"


CALL_LAWS = (
    nothing_is_unheard_of,
    starts_are_kept,
    one_run_per_key,
    runs_end_as_they_must,
    one_answer_is_taken,
    signals_come_once,
    broadcasts_reach_who_waits,
    the_cancelled_is_never_done,
    reads_go_forward,
    workers_leave_in_order,
)
