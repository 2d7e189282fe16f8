"""Whether two starts are one: who starts again what was started before finds the run there."""

from __future__ import annotations

from streamline_trio._core.documents import Origin


def is_same_start(stored: Origin, asked: Origin) -> bool:
    """Whether the stored run of that id is of this start, or what starts it has started it before.

    Who repeats a broadcast or a firing, whose runs have ids that follow from them, adopts the run. It is not theirs
    to drive: each insert has a start id of its own, or two workers would take one stored run for theirs.
    """
    if stored.start_id == asked.start_id or (asked.emission != "" and asked.emission == stored.emission):
        return True
    here, there = asked.scheduled, stored.scheduled
    return here is not None and there is not None and here.schedule != "" and here.schedule == there.schedule
