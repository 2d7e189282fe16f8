"""A run and the slot it needs, if its workflow limits how many go on at a time.

    later -> queued | asked -> held -> left -> queued | asked ...

What the bucket has to be told of it is found by `fill`, whatever the turn was about: nobody who settles, pauses or
cancels a run has to think of its slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from streamline_trio._core.decide.outbox import PATIENCE, send
from streamline_trio._core.documents import WANTS_SLOT, Errand, ErrorDoc, Head, SlotDoc
from streamline_trio._core.errors import ConcurrencyLimitReached
from streamline_trio._core.happenings import SlotAsked, SlotGranted, SlotRefused, TakenUp
from streamline_trio._core.status import SETTLED

if TYPE_CHECKING:
    from streamline_trio._core.decide.turn import Turn

_replace = msgspec.structs.replace


def slot_granted(turn: Turn, happening: SlotGranted) -> bool:
    """The bucket has the run's entry, so it may go on; it is ready from now."""
    slot = turn.head.slot
    if slot is None or slot.acquisition != happening.acquisition or turn.status in SETTLED:
        raise turn.invalid("admit", "it does not want this slot any more")
    if slot.state not in WANTS_SLOT:
        return False
    turn.change(slot=_replace(slot, state="held", attended=False))
    drop_admission(turn)
    turn.ready()
    return True


def slot_refused(turn: Turn, happening: SlotRefused) -> bool:
    """There is no slot for it: a draft fails, and what had settled stays as it is."""
    slot = turn.head.slot
    if slot is None or slot.state != "asked" or slot.acquisition != happening.acquisition:
        return False
    if turn.status in SETTLED:
        turn.change(slot=_replace(slot, state="left", attended=False))
    else:
        text = f"all {happening.holding} slots are taken, and runs of {turn.run.origin.workflow} do not queue"
        turn.settle_failed(
            ErrorDoc(code=ConcurrencyLimitReached.code, message=text, type=ConcurrencyLimitReached.__name__)
        )
    drop_admission(turn)
    return True


def slot_asked(turn: Turn, happening: SlotAsked) -> bool:
    """Somebody wants to take the settled run up again, and asks for a slot first; nothing else changes.

    Of several one at a time: whoever finds another's wish there waits for what becomes of it.
    """
    slot = _slot_of(turn, happening)
    if slot is None or turn.status not in SETTLED:
        raise turn.invalid("ask a slot for", "it has not settled", *sorted(SETTLED))
    if slot.state == "asked":
        return False
    limits = turn.plan.concurrency
    turn.change(
        slot=_replace(
            slot,
            limit=slot.limit if limits is None else limits.limit,
            acquisition=happening.acquisition,
            ticket=happening.ticket,
            state="asked",
            rejects=True,
            attended=True,
        )
    )
    return True


def take_up(turn: Turn, happening: TakenUp) -> None:
    """A settled run goes on: it needs a slot again. Call it before the status changes.

    Raises `ConcurrencyLimitReached` where it would have to be asked for first.
    """
    slot = _slot_of(turn, happening)
    if slot is None or slot.state not in {"left", "asked"}:
        return
    drop_admission(turn)
    limits = turn.plan.concurrency
    if limits is None:
        turn.change(slot=_replace(slot, state="left"))
        return
    slot = _replace(slot, limit=limits.limit, rejects=limits.when_full == "reject")
    if not slot.rejects:
        wanted = _replace(slot, state="queued", acquisition=happening.acquisition, ticket=happening.ticket)
        turn.change(slot=wanted)
    elif slot.state == "asked" and slot.acquisition == happening.acquisition:
        turn.change(slot=_replace(slot, state="held", attended=False))
    else:
        raise ConcurrencyLimitReached(
            f"run {turn.run.id} needs a slot before it can go on", workflow=turn.run.origin.workflow
        )


def _slot_of(turn: Turn, happening: TakenUp | SlotAsked) -> SlotDoc | None:
    """Its slot; of a run that began before its workflow had a limit, one in the bucket that is told."""
    if turn.head.slot is not None or not happening.bucket or turn.plan.concurrency is None:
        return turn.head.slot
    return SlotDoc(bucket=happening.bucket, limit=0, acquisition=0, ticket=0, state="left")


def join_queue(turn: Turn, first: SlotDoc | None) -> bool:
    """Instead of being taken: a draft whose start was put off asks for its slot now. False if it needs none.

    `first` is for a draft that has none on record.
    """
    slot: SlotDoc | None = turn.changed("slot")
    if slot is None and first is not None and turn.status == "draft":
        slot = first
        turn.change(slot=slot)
    if slot is None or slot.state in {"held", "left"}:
        return False
    if slot.state == "later":
        ticket = max(slot.ticket, (turn.head.start_at or 0) * 1000)
        turn.change(slot=_replace(slot, state="asked" if slot.rejects else "queued", ticket=ticket))
    end_window(turn)
    return True


def end_window(turn: Turn) -> None:
    """A debounced draft that has to pass something else takes no further starts."""
    if turn.head.debounce is not None:
        turn.change(debounce=_replace(turn.head.debounce, fired=True))


def migrate(turn: Turn, slot: SlotDoc | None) -> None:
    """The limits of the new version hold; the bucket stays what it was. `slot` is for a run that has none yet."""
    limits, now = turn.plan.concurrency, turn.head.slot
    if limits is None:
        turn.change(slot=None)
    elif now is None or now.state == "left":
        turn.change(slot=slot)
    else:
        turn.change(slot=_replace(now, limit=limits.limit, rejects=limits.when_full == "reject"))


def leave(turn: Turn) -> None:
    """The run settles: whatever it held or wanted, it does not any more."""
    slot: SlotDoc | None = turn.changed("slot")
    if slot is not None:
        turn.change(slot=_replace(slot, state="left", attended=False))
        drop_admission(turn)


def fill(turn: Turn) -> None:
    """Put into the outbox what the bucket has to be told because of this turn."""
    head = turn.run.head
    before, after = head.slot, turn.changed("slot")
    if before is after and head.paused == turn.paused:
        return
    if before is not None and before.state in _IN_BUCKET and not _keeps(before, after):
        _send(turn, "release", before.bucket, before.acquisition)
    elif before is not None and before.state == "queued" and turn.paused and not head.paused:
        _send(turn, "admit", before.bucket, before.acquisition)  # those behind it move up
    if after is not None and _asks(after, paused=turn.paused) and not _asked(before, head, after):
        send_admission(turn, after)


def send_admission(turn: Turn, slot: SlotDoc) -> None:
    """See to it that somebody looks for a slot for this run."""
    _send(turn, "admit", slot.bucket, slot.acquisition)


def drop_admission(turn: Turn) -> None:
    """Nobody needs to look for a slot any more."""
    turn.drop("outbox", [number for number, errand in turn.outbox.items() if errand.kind == "admit"])


_IN_BUCKET = WANTS_SLOT | {"held"}


def _keeps(before: SlotDoc, after: SlotDoc | None) -> bool:
    return after is not None and after.state in _IN_BUCKET and after.acquisition == before.acquisition


def _asks(slot: SlotDoc, *, paused: bool) -> bool:
    """Whether somebody has to look for a slot."""
    return slot.state == "asked" or (slot.state == "queued" and not paused)


def _asked(before: SlotDoc | None, head: Head, after: SlotDoc) -> bool:
    """Whether somebody looks for it already."""
    return before is not None and before.acquisition == after.acquisition and _asks(before, paused=head.paused)


def _send(turn: Turn, kind: Literal["admit", "release"], bucket: str, acquisition: int) -> None:
    send(turn, Errand(kind=kind, due_at=turn.now + PATIENCE, key=bucket, acquisition=acquisition))
