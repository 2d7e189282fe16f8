"""The checker: from the story of a chaos to the promises that were broken, in words."""

from __future__ import annotations

from collections.abc import Sequence

from tests.chaos.facts import Facts
from tests.chaos.laws_of_bodies import (
    BODY_LAWS,
    commits_are_stored_once,
    finished_steps_stay_finished,
    once_is_remembered,
    patches_are_kept,
)
from tests.chaos.laws_of_calls import (
    CALL_LAWS,
    broadcasts_reach_who_waits,
    one_answer_is_taken,
    signals_come_once,
    starts_are_kept,
)
from tests.chaos.records import Story

LAWS = (*CALL_LAWS, *BODY_LAWS)
COUNTED = {
    "lost": (starts_are_kept, one_answer_is_taken, signals_come_once, broadcasts_reach_who_waits, patches_are_kept),
    "commits stored twice": (commits_are_stored_once,),
    "finished steps run again": (finished_steps_stay_finished, once_is_remembered),
}
"""Which laws tell of what people ask about first."""


def check(story: Story) -> list[str]:
    """Every violation of every law, each with the law's name."""
    facts = Facts(story)
    return [f"{law.__name__}: {violation}" for law in LAWS for violation in law(facts)]


def tally(violations: Sequence[str]) -> dict[str, int]:
    """How many of the violations are of each kind that people ask about first."""
    names = [violation.partition(":")[0] for violation in violations]
    return {what: sum(names.count(law.__name__) for law in laws) for what, laws in COUNTED.items()}
