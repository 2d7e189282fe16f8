"""Buckets of slots: who holds one. Pure functions over a small document beside the runs.

A bucket holds the runs that have a slot, each under the acquisition it was given for, never a counter and never the
queue: that is the stored runs which want one. An entry is there before its run can begin, and leaves after the run
has settled; so the runs that go on are never more than the entries, and those never more than the limit.

Entries may be there for nothing, where a process died between two writes: taking out one whose run does not want
or hold that very acquisition is always right, since a run that has dropped an acquisition never has it again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from streamline_trio._core.documents import WANTS_SLOT, RunDoc, unique_key

SLOTS = "slots"
"""The kind of the side documents; the key is the bucket's name."""

_replace = msgspec.structs.replace


class SlotBucket(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The acquisition of each run that has a slot. `untold` are those that may not know it yet.

    `limit` is that of the run that came in last: what people are shown. Each run comes in by its own.
    """

    holders: dict[str, int] = {}
    untold: tuple[str, ...] = ()
    limit: int = 0


EMPTY = SlotBucket()
_decode = msgspec.msgpack.Decoder(SlotBucket).decode
_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def decode_bucket(body: bytes) -> SlotBucket:
    """A stored bucket."""
    return _decode(body)


def encode_bucket(bucket: SlotBucket) -> bytes | None:
    """Its stored form; None for one that nobody holds a slot of, which is not kept."""
    return _encode(bucket) if bucket.holders else None


def bucket_of(tenant: str | None, workflow: str, key: str | None) -> str:
    """The bucket's name, unambiguous; keys are never empty, so nothing stands for a workflow without one."""
    return unique_key(tenant, workflow, key or "")


def parts_of(bucket: str) -> tuple[str | None, str, str | None]:
    """Tenant, workflow and key of a name that `bucket_of` made."""
    scope, workflow, key = bucket.split("\n", 2)
    tenant = scope[1:].replace("\\n", "\n").replace("\\\\", "\\") if scope else None
    return tenant, workflow, key or None


def entered(bucket: SlotBucket, run_id: str, acquisition: int, limit: int) -> SlotBucket | None:
    """With one more holder; the same if it is one already, None if there is no slot for a run of this limit."""
    if bucket.holders.get(run_id) == acquisition:
        return bucket
    others = len(bucket.holders) - (run_id in bucket.holders)
    if others >= limit:
        return None
    return SlotBucket(
        holders={**bucket.holders, run_id: acquisition},
        untold=(*(one for one in bucket.untold if one != run_id), run_id),
        limit=limit,
    )


def without(bucket: SlotBucket, entries: Iterable[tuple[str, int]]) -> SlotBucket:
    """Without these, as far as they are there under this very acquisition; the same if none is."""
    gone = {run_id for run_id, acquisition in entries if bucket.holders.get(run_id) == acquisition}
    if not gone:
        return bucket
    return _replace(
        bucket,
        holders={run_id: acquisition for run_id, acquisition in bucket.holders.items() if run_id not in gone},
        untold=tuple(run_id for run_id in bucket.untold if run_id not in gone),
    )


def told(bucket: SlotBucket, run_ids: Collection[str]) -> SlotBucket:
    """These know that they have their slot; the same if that was known."""
    left = tuple(run_id for run_id in bucket.untold if run_id not in run_ids)
    return bucket if len(left) == len(bucket.untold) else _replace(bucket, untold=left)


def unfounded(bucket: SlotBucket, runs: Mapping[str, RunDoc | None]) -> list[tuple[str, int]]:
    """Of the entries of these runs, as they are stored now, those that are there for nothing."""
    return [
        (run_id, acquisition)
        for run_id, run in runs.items()
        if (acquisition := bucket.holders.get(run_id)) is not None and not has_use_for(run, acquisition)
    ]


def has_use_for(run: RunDoc | None, acquisition: int) -> bool:
    """Whether the run wants or holds this very acquisition."""
    slot = None if run is None else run.head.slot
    return slot is not None and slot.acquisition == acquisition and slot.state in _USED


_USED = WANTS_SLOT | {"held"}
