"""Runs for Hypothesis: small, with every kind of part, keys of any text."""

from hypothesis import strategies as st

from streamline_trio._core.documents import (
    Errand,
    ErrorDoc,
    Head,
    Lease,
    Memo,
    Message,
    Origin,
    Parent,
    Piece,
    Record,
    RunDoc,
    Scheduled,
    SlotDoc,
    StepDoc,
    Try,
    WaitNote,
)
from streamline_trio._core.status import RUN_STATUSES, STEP_STATUSES

keys = st.one_of(st.sampled_from(["", "/", "a", "a/b", "head", "step/a"]), st.text(max_size=4))
instants = st.integers(0, 2**53)
counts = st.integers(0, 100)
payloads = st.binary(max_size=6)
errors = st.builds(ErrorDoc, code=keys, message=keys, step=st.none() | keys)

tries = st.builds(
    Try,
    attempt=counts,
    worker=keys,
    started_at=instants,
    ended_at=instants,
    outcome=st.sampled_from(["failed", "crashed"]),
)
notes = st.builds(
    WaitNote,
    kind=st.just("human"),
    name=keys,
    opened_at=instants,
    resolved_at=instants,
    outcome=st.just("value"),
)
steps = st.builds(
    StepDoc,
    status=st.sampled_from(STEP_STATUSES),
    attempts=counts,
    output=st.none() | payloads,
    error=st.none() | errors,
    tries=st.lists(tries, max_size=2).map(tuple),
    waits=st.lists(notes, max_size=1).map(tuple),
)
records = st.builds(
    Record,
    kind=st.sampled_from(["timer", "human", "signal"]),
    ask=keys,
    attempt=counts,
    place=counts,
    opened_at=instants,
    tokens=st.lists(keys, max_size=2).map(tuple),
    outcome=st.sampled_from([None, "value", "timed_out"]),
    value=st.none() | payloads,
)
errands = st.builds(
    Errand,
    kind=st.sampled_from(["nudge", "cancel"]),
    due_at=instants,
    run=keys,
    group=keys,
    output=st.none() | payloads,
    error=st.none() | errors,
)
messages = st.builds(Message, signal=keys, payload=payloads, id=keys, at=instants)
origins = st.builds(
    Origin,
    id=keys,
    workflow=keys,
    start_id=st.integers(0, 2**63 - 1),
    created_at=instants,
    input=payloads,
    tenant=st.none() | keys,
    priority=st.integers(-100, 100),
    tags=st.lists(keys, max_size=2).map(tuple),
    meta=st.none() | payloads,
    parent=st.none() | st.builds(Parent, run=keys, step=keys),
    scheduled=st.none() | st.builds(Scheduled, at=instants),
)
heads = st.builds(
    Head,
    version=keys,
    fingerprint=keys,
    status=st.sampled_from(RUN_STATUSES),
    updated_at=instants,
    revision=counts,
    lease=st.none() | st.builds(Lease, worker=keys, fence=counts),
    due_at=st.none() | instants,
    errand_at=st.none() | instants,
    paused=st.booleans(),
    slot=st.none()
    | st.builds(
        SlotDoc,
        bucket=keys,
        limit=counts,
        acquisition=st.integers(0, 2**63 - 1),
        ticket=counts,
        state=st.sampled_from(["later", "asked", "queued", "held", "left"]),
        rejects=st.booleans(),
    ),
    error=st.none() | errors,
    commits=st.lists(counts, max_size=3).map(tuple),
)


def _map(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.dictionaries(keys, values, max_size=3)


maps = {
    "steps": _map(steps),
    "records": _map(records),
    "pieces": _map(st.builds(Piece, value=payloads, round=counts, done=st.booleans())),
    "checkpoints": _map(payloads),
    "memos": _map(st.builds(Memo, step=keys, value=payloads)),
    "inbox": _map(messages),
    "seen": _map(instants),
    "outbox": _map(errands),
}
runs: st.SearchStrategy[RunDoc] = st.builds(RunDoc, origin=origins, head=heads, state=payloads, **maps)
