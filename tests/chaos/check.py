"""The checker: from the story of a chaos to the promises that were broken, in words."""

from __future__ import annotations

from tests.chaos.facts import Facts
from tests.chaos.laws_of_bodies import BODY_LAWS
from tests.chaos.laws_of_calls import CALL_LAWS
from tests.chaos.records import Story

LAWS = (*CALL_LAWS, *BODY_LAWS)


def check(story: Story) -> list[str]:
    """Every violation of every law, each with the law's name."""
    facts = Facts(story)
    return [f"{law.__name__}: {violation}" for law in LAWS for violation in law(facts)]
