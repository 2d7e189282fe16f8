"""What a run asks for whose workflow limits how many go on at a time."""

from __future__ import annotations

from typing import Any

from streamline_trio._core.definition import Workflow
from streamline_trio._core.documents import Origin, SlotDoc
from streamline_trio._core.slots import bucket_of
from streamline_trio._core.start_options import call_key
from streamline_trio._runtime.services import Services


def slot_for(
    services: Services,
    workflow: Workflow[Any, Any],
    origin: Origin,
    *,
    is_later: bool = False,
    attended: bool = False,
) -> SlotDoc | None:
    """The slot that a run is to ask for, if its workflow has a limit; `ValidationError` if the key cannot be had.

    `is_later`: only when it begins. `attended`: whoever starts it waits for the answer, and is told when it is no.
    """
    rule = workflow.rules.concurrency
    if rule is None:
        return None
    value = None if rule.key is None else workflow.input_decoder.decode(origin.input, what="input")
    key = call_key(rule.key, value, what=f"concurrency of {workflow.id}")
    rejects = rule.when_full == "reject"
    return SlotDoc(
        bucket=bucket_of(origin.tenant, workflow.id, key),
        limit=rule.limit,
        acquisition=services.chance.commit_id(),
        ticket=services.chance.ticket(services.clock.now()),
        state="later" if is_later else "asked" if rejects else "queued",
        rejects=rejects,
        attended=attended and rejects and not is_later,
    )
