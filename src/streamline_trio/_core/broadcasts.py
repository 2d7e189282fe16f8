"""Broadcasts as side documents: what was emitted, how far it has come, and what is still to be started for it.

A broadcast is delivered by whoever has its baton: the document's `due_at` lies ahead as long as somebody is at
it, and whoever moves it there by compare-and-set is the next. It is done when it has reached all who listened and
every workflow that it triggers was seen to; then it is only kept so that its id is known again.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import msgspec

from streamline_trio._core.documents import unique_key

BROADCASTS = "broadcast"
LISTENERS = "listener"
KEPT = 24 * 60 * 60 * 1000
UNFIRED_FOR = 7 * KEPT

_replace = msgspec.structs.replace


class BroadcastDoc(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A broadcast: what was emitted, and how far it has come.

    `cursor` is the last of the runs, in the order of their ids, up to which it was delivered; `delivered`: to all.
    `triggered` are the workflows of which a run is still to be started. `minted`: nobody else knows the id.
    """

    signal: str
    payload: bytes
    id: str
    at: int
    tenant: str | None = None
    match: dict[str, Any] = {}
    done: bool = False
    cursor: str = ""
    delivered: bool = False
    triggered: tuple[str, ...] = ()
    minted: bool = False

    @property
    def key(self) -> str:
        """The key of its side document: an id is unique per tenant and signal."""
        return broadcast_key(self.tenant, self.signal, self.id)


Change = Callable[[BroadcastDoc], BroadcastDoc]

decode_broadcast = msgspec.msgpack.Decoder(BroadcastDoc).decode
encode_broadcast = msgspec.msgpack.Encoder().encode


def broadcast_key(tenant: str | None, signal: str, id: str) -> str:
    """The key of a broadcast: unambiguous, since names of signals hold no newline and tenants are quoted."""
    return unique_key(tenant, signal, id)


def delivered(doc: BroadcastDoc) -> BroadcastDoc:
    """It has reached everybody."""
    return _concluded(_replace(doc, delivered=True, cursor=""))


def fired(doc: BroadcastDoc, *workflows: str) -> BroadcastDoc:
    """These workflows have been seen to."""
    return _concluded(_replace(doc, triggered=tuple(name for name in doc.triggered if name not in workflows)))


def _concluded(doc: BroadcastDoc) -> BroadcastDoc:
    return _replace(doc, done=doc.delivered and not doc.triggered)


def is_forgotten(before: BroadcastDoc, after: BroadcastDoc) -> bool:
    """Whether nothing has to be kept of it: it is done, and nobody can repeat it or ask what became of it."""
    return after.done and after.minted and not before.triggered


def due_of(doc: BroadcastDoc, now: int) -> int:
    """When somebody has to look at a broadcast that nobody is at: one that is delivered, to give it up."""
    if doc.done:
        return doc.at + KEPT
    return doc.at + UNFIRED_FOR if doc.delivered else now


def is_pending(doc: BroadcastDoc, workflow: str) -> bool:
    """Whether somebody may still come to start a run of the workflow for it."""
    return workflow in doc.triggered


def triggered_run(key: str, workflow: str, index: int) -> str:
    """The id of the run that one trigger of a workflow starts for a broadcast: who repeats it finds it there."""
    told = f"{key}\n{workflow}\n{index}"
    return f"triggered-{sha256(told.encode()).hexdigest()[:32]}"


def listener_key(signal: str, workflow: str, version: str) -> str:
    """The key under which a triggered version of a workflow is found by signal, whose names hold no newline."""
    return f"{signal}\n{workflow}\n{version}"


def triggers_of(workflow: str) -> str:
    """The kind of the side documents that tell workers with this workflow of broadcasts (their keys)."""
    return f"trigger:{workflow}"
