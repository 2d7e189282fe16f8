"""What must hold of the bodies of handlers, and of what they have made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from tests.chaos.facts import SLACK, Body, Facts
from tests.chaos.records import NEVER, Retired, Seen
from tests.chaos.workflows import ATTEMPTS, ORDER

NOTICED_WITHIN = 0.8
"""Seconds after a poll until the holder of a run has certainly seen what others want of it."""

SETTLED = frozenset({"done", "failed", "cancelled"})


def every_body_ends(facts: Facts) -> Iterator[str]:
    """A body is of a stored run, and ends at the latest with its process."""
    for run, bodies in facts.bodies.items():
        if run not in facts.finals:
            yield f"{bodies[0]} is of a run that is not stored"
        for body in bodies:
            if body.ended == NEVER:
                yield f"{body} has never ended"
            elif not body.how and facts.story.exits.get(body.pid) == 0:
                yield f"{body} was still going on when its process left"


def one_holder_per_fence(facts: Facts) -> Iterator[str]:
    """A fence belongs to one claim by one process."""
    for run, bodies in facts.bodies.items():
        holders: dict[int, Body] = {}
        for body in bodies:
            first = holders.setdefault(body.fence, body)
            if first.pid != body.pid:
                yield f"{run}: two processes under fence {body.fence}: {first} and {body}"


def fences_grow(facts: Facts) -> Iterator[str]:
    """Nobody enters a body under an old fence, unless the process was standing still just then."""
    for bodies in facts.bodies.values():
        highest = bodies[0]
        for body in bodies:
            if body.fence >= highest.fence:
                highest = body
            elif not facts.is_excused(body.pid, body.at):
                yield f"{body} began after {highest}"


def one_body_at_a_time(facts: Facts) -> Iterator[str]:
    """Two bodies of a run overlap only if the older one's process could not know that it had lost the run."""
    for bodies in facts.bodies.values():
        for first, second in combinations(bodies, 2):
            older, newer = sorted((first, second), key=lambda body: (body.fence, body.at))
            overlap = min(older.ended, newer.ended) - max(older.at, newer.at)
            if overlap <= 0:
                continue
            if older.fence == newer.fence:
                yield f"two bodies at once under one fence: {older} and {newer}"
            elif older.ended > facts.must_end_by(older, newer.at):
                yield f"two bodies at once for {overlap:.2f} s: {older} and {newer}"


def none_outlives_its_run(facts: Facts) -> Iterator[str]:
    """When a run has settled its bodies are over, and no further one begins."""
    for run, bodies in facts.bodies.items():
        final = facts.finals.get(run)
        if final is None or final.ended_at is None or facts.was_retried(run):
            continue
        for body in bodies:
            if body.at > final.ended_at + SLACK and not facts.is_excused(body.pid, body.at):
                yield f"{body} began after the run was {final.status} at {final.ended_at:.3f}"
            elif body.ended > facts.must_end_by(body, final.ended_at):
                yield f"{body} went on after the run was {final.status} at {final.ended_at:.3f}"


def finished_steps_stay_finished(facts: Facts) -> Iterator[str]:
    """A stored output was returned by the last claim's body of that step; none of a later claim came after it."""
    for final in facts.finals.values():
        for step, output in final.done.items():
            made = facts.body(final.id, output["entry"])
            if made is None or made.entered.step != step or made.how != "returned":
                yield f"{final.id}: the output of {step} was returned by no body of it: {output} ({made})"
                continue
            for body in _of_step(facts, final.id, step, made.entered.generation):
                if body.fence > made.fence or (body.fence == made.fence and body.at > made.ended):
                    yield f"{body} ran again after {made} had finished the step"
            if any(body.entered.generation > made.entered.generation for body in _of_step(facts, final.id, step)):
                yield f"{final.id}: the output of {step} is of an earlier generation: {made}"


def _of_step(facts: Facts, run: str, step: str, generation: int | None = None) -> list[Body]:
    return [
        body
        for body in facts.bodies_of(run)
        if body.entered.step == step and generation in {None, body.entered.generation}
    ]


def steps_come_in_order(facts: Facts) -> Iterator[str]:
    """A step begins only when those before it have returned; one that is skipped has no body."""
    for final in facts.finals.values():
        order = ORDER[final.workflow]
        over: set[str] = set()
        returned = sorted((b.ended, b.entered.step) for b in facts.bodies_of(final.id) if b.how == "returned")
        for body in facts.bodies_of(final.id):
            over.update(step for ended, step in returned if ended <= body.at)
            missing = [s for s in order[: order.index(body.entered.step)] if s not in over and s != "never"]
            if missing:
                yield f"{body} began before {missing} had returned"
            if body.entered.step in {"never", *final.skipped}:
                yield f"{body} is of a step that is skipped"


def attempts_are_counted(facts: Facts) -> Iterator[str]:
    """Attempts are as many as the limit allows, and one more for each crash; no body has a number beyond them."""
    for final in facts.finals.values():
        for step, attempts in final.attempts.items():
            limit = ATTEMPTS[final.workflow] if step in {"fails", "hangs"} else 1
            if attempts > limit + final.recoveries:
                yield (
                    f"{final.id}: {step} was attempted {attempts} times, with a limit of {limit}"
                    f" and {final.recoveries} recoveries"
                )
            if final.workflow == "back" or facts.was_retried(final.id):
                continue
            for body in _of_step(facts, final.id, step):
                if body.entered.attempt > attempts:
                    yield f"{body} is beyond the {attempts} attempts that are stored"


def generations_grow(facts: Facts) -> Iterator[str]:
    """Nothing of an earlier round begins under the same or a later claim."""
    for bodies in facts.bodies.values():
        highest: dict[str, Body] = {}
        for body in bodies:
            last = highest.setdefault(body.entered.step, body)
            if body.entered.generation >= last.entered.generation:
                highest[body.entered.step] = body
            elif body.fence >= last.fence:
                yield f"{body} began after {last}"


def once_is_remembered(facts: Facts) -> Iterator[str]:
    """`once` is done at least once, all its values are one, and no later claim does it after that one's."""
    for final in facts.finals.values():
        if final.workflow != "once":
            continue
        paid = [did for did in facts.did[final.id] if did.what == "paid"]
        values = {output["value"] for output in final.done.values()}
        if len(values) > 1:
            yield f"{final.id}: once gave different values: {sorted(values)}"
        for value in values:
            made = facts.body(final.id, value)
            if made is None or not any(did.value == value for did in paid):
                yield f"{final.id}: once gave {value!r}, which nobody has made"
                continue
            for did in paid:
                body = facts.body(final.id, did.entry)
                if body is not None and (body.fence, did.at) > (made.fence, made.ended):
                    yield f"{final.id}: once was done again by {body} after {made} had stored it"


def patches_are_kept(facts: Facts) -> Iterator[str]:
    """Every acknowledged `set` counts up: none is lost, none is made on a state that was old."""
    for final in facts.finals.values():
        acknowledged: defaultdict[Any, list[str]] = defaultdict(list)
        for did in facts.did[final.id]:
            if did.what == "set":
                acknowledged[did.value].append(did.entry)
        for value, entries in acknowledged.items():
            if len(entries) > 1:
                yield f"{final.id}: the state was set to {value} by several bodies: {entries}"
            if value > final.state["sets"]:
                yield f"{final.id}: the state was set to {value} by {entries}, and is {final.state['sets']}"
        if final.workflow == "patch" and final.status == "done":
            yield from _too_few(final, facts.jobs[final.job].times)


def _too_few(final: Seen, times: int) -> Iterator[str]:
    if final.state["sets"] < len(ORDER["patch"]) * times:
        yield f"{final.id}: the state was set {final.state['sets']} times, of {len(ORDER['patch']) * times}"


def commits_are_stored_once(facts: Facts) -> Iterator[str]:
    """A commit whose acknowledgement was lost, and that was made again, is in its run once."""
    for final in facts.finals.values():
        twice = sorted({commit for commit in final.commits if final.commits.count(commit) > 1})
        if twice:
            yield f"{final.id}: commits {twice} were stored twice: {list(final.commits)}"


def later_steps_see_what_is_stored(facts: Facts) -> Iterator[str]:
    """What a step reads of an earlier one's output is what is stored of it."""
    for final in facts.finals.values():
        for did in facts.did[final.id]:
            if did.what != "saw":
                continue
            step, entry = did.value
            if final.done.get(step, {}).get("entry") != entry:
                yield f"{final.id}: body {did.entry} saw {step} made by {entry}, stored is {final.done.get(step)}"


def the_cancelled_is_stopped(facts: Facts) -> Iterator[str]:
    """A body ends soon after its run's cancel is acknowledged, unless its process was held up."""
    for run, bodies in facts.bodies.items():
        for cancel in facts.acknowledged(run, "cancel"):
            by = cancel.ended + facts.story.poll + NOTICED_WITHIN
            for body in bodies:
                seen = body.at < cancel.ended and not facts.was_held_up(body.pid, cancel.invoked, by)
                if seen and body.ended > facts.must_end_by(body, by):
                    yield f"{body} went on, though a cancel was acknowledged at {cancel.ended:.3f}"


def leases_are_lost_for_a_reason(facts: Facts) -> Iterator[str]:
    """A worker gives up its id only after its process stood still, or its writes were stuck."""
    for line in facts.story.lines:
        if isinstance(line, Retired) and not facts.was_held_up(line.pid, line.at - 2 * facts.story.lease, line.at):
            yield f"process {line.pid} lost its lease at {line.at:.3f}, though nothing held it up"


def nothing_begins_while_paused(facts: Facts) -> Iterator[str]:
    """Between an acknowledged pause and the next unpause no body begins; a settled run is not paused by it.

    A handler that runs ends its step: if what it waits for is there already, it is entered again at once.
    """
    for run, bodies in facts.bodies.items():
        if facts.was_retried(run):
            continue
        for pause in facts.acknowledged(run, "pause"):
            unpauses = facts.verbs(run, "unpause")
            until = min((c.invoked for c in unpauses if c.invoked > pause.invoked), default=NEVER)
            running = {_attempt(body) for body in bodies if body.at <= pause.ended + SLACK}
            for body in bodies:
                if _attempt(body) in running or facts.is_excused(body.pid, body.at):
                    continue
                if pause.ended + SLACK < body.at < until:
                    yield f"{body} began while the run was paused from {pause.ended:.3f} to {until:.3f}"


def _attempt(body: Body) -> tuple[int, str, int, int]:
    """What the bodies of one call of a handler have in common, under a lease that was never given back."""
    return body.fence, body.entered.step, body.entered.generation, body.entered.attempt


BODY_LAWS = (
    every_body_ends,
    one_holder_per_fence,
    fences_grow,
    one_body_at_a_time,
    none_outlives_its_run,
    finished_steps_stay_finished,
    steps_come_in_order,
    attempts_are_counted,
    generations_grow,
    once_is_remembered,
    patches_are_kept,
    commits_are_stored_once,
    later_steps_see_what_is_stored,
    the_cancelled_is_stopped,
    leases_are_lost_for_a_reason,
    nothing_begins_while_paused,
)
