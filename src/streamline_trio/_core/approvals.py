"""What an approval comes to, and the payloads that approve and reject.

Annotations are evaluated here: msgspec would look for `T_co` in the public module.
"""

from typing import Any, Generic

import msgspec
from typing_extensions import TypeVar

from streamline_trio._core import payload
from streamline_trio._core.checking import check_reason
from streamline_trio._core.shapes import describe

T_co = TypeVar("T_co", covariant=True, default=Any)


class Approved(msgspec.Struct, Generic[T_co], frozen=True, tag="approved"):
    """Somebody approved, with `data` if they gave any."""

    data: T_co = None  # type: ignore[assignment]  # a caller that gives no data says that it takes none


class Rejected(msgspec.Struct, frozen=True, tag="rejected"):
    """Somebody rejected, perhaps with a reason."""

    reason: str | None = None


class Withdrawn(msgspec.Struct, frozen=True, tag="withdrawn"):
    """Somebody withdrew the question, perhaps with a reason."""

    reason: str | None = None


class TimedOut(msgspec.Struct, frozen=True, tag="timed_out"):
    """Nobody decided in time."""


class _WithData(msgspec.Struct, Generic[T_co], frozen=True, tag="approved"):
    """What is stored of an approval: its data must be there, and of the type that is asked for."""

    data: T_co


def shape_of(returns: Any) -> bytes:
    """The shape of the payloads that decide an approval whose data is of this type."""
    return describe(_WithData[returns] | Rejected)


def decision_decoder(returns: Any) -> payload.Decoder:
    """The decoder of whatever an approval may come to."""
    return payload.decoder(Approved[returns] | Rejected | Withdrawn | TimedOut)


def undecided(outcome: str, reason: str | None) -> payload.Payload:
    """The payload that tells of an approval which nobody decided."""
    return payload.encode(TimedOut() if outcome == "timed_out" else Withdrawn(reason), what="an approval")


def approval(data: object) -> payload.Payload:
    """The payload that approves; `ValidationError` if the data cannot be stored."""
    return payload.encode(Approved(data), what="the data of an approval")


def rejection(reason: str | None) -> payload.Payload:
    """The payload that rejects; `ValidationError` for a reason that is no text."""
    check_reason(reason, "the reason of a rejection")
    return payload.encode(Rejected(reason), what="the rejection")
