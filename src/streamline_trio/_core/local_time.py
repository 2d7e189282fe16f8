"""A time on the wall clock of a place, as people give it."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, NoReturn

import whenever
from typing_extensions import override

from streamline_trio._core.documents import Scheduled
from streamline_trio._core.durations import instant_of
from streamline_trio._core.errors import ValidationError
from streamline_trio._core.zones import checked_zone, resolve

_FORM = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.\d{1,6})?)?", re.ASCII)


class LocalTime:
    """A time on the wall clock of a zone: ``LocalTime("2026-03-29 02:30", "Europe/Berlin")``.

    `local` is text ("YYYY-MM-DD HH:MM", seconds and their fraction if wanted, a space or T between), a naive
    `datetime` or a `whenever.PlainDateTime`; `zone` is a name of the IANA database. A time that the clock skips is
    shifted forward by the gap, and `gap` is true; of a time that it shows twice the first is meant, and `fold` is
    true. `instant` is in whole milliseconds, rounded up. Immutable; equal when the same time of the same clock is
    meant. Raises `ValidationError` for what is no such time, and for an unknown zone.
    """

    __slots__ = ("_told", "local", "zone")

    local: str
    zone: str
    _told: Scheduled

    def __init__(self, local: str | datetime | whenever.PlainDateTime, zone: str) -> None:
        text, wall = _read(local)
        name = checked_zone(zone, what="zone")
        at, gap, fold = resolve(wall, name, what="local")
        told = Scheduled(at=at, local=text, zone=name, gap=gap, fold=fold)
        for field, value in (("local", text), ("zone", name), ("_told", told)):
            object.__setattr__(self, field, value)

    @property
    def instant(self) -> whenever.Instant:
        """The moment that is meant."""
        return instant_of(self._told.at)

    @property
    def gap(self) -> bool:
        """Whether the clock skips this time, so that `instant` is later by the gap."""
        return self._told.gap

    @property
    def fold(self) -> bool:
        """Whether the clock shows this time twice; `instant` is the first."""
        return self._told.fold

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a LocalTime does not change; {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a LocalTime does not change; {name} cannot be deleted")

    @override
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LocalTime):
            return NotImplemented
        return self._meant == other._meant

    @override
    def __hash__(self) -> int:
        return hash(self._meant)

    @property
    def _meant(self) -> tuple[int, str, bool]:
        return self._told.at, self.zone, self._told.gap

    @override
    def __repr__(self) -> str:
        return f"LocalTime({self.local!r}, {self.zone!r})"

    def __reduce__(self) -> tuple[type[LocalTime], tuple[str, str]]:
        return LocalTime, (self.local, self.zone)


def scheduled(value: LocalTime) -> Scheduled:
    """The local time as the document keeps it with a run."""
    return value._told  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - for this package only


def _read(local: Any) -> tuple[str, datetime]:
    """The text as it is kept, and the wall-clock time it names."""
    if isinstance(local, str):
        return local, _parsed(local)
    if isinstance(local, whenever.PlainDateTime):
        local = local.to_stdlib()
    if isinstance(local, datetime):
        if local.tzinfo is not None:
            raise ValidationError(f"local must have no time zone of its own, but {local!r} has one", what="local")
        if local.fold:
            raise ValidationError(f"local means the first of two times, but {local!r} has fold=1", what="local")
        return str(local), local
    raise ValidationError(
        f"local must be a text, a naive datetime or a whenever.PlainDateTime, not {local!r:.200}", what="local"
    )


def _parsed(text: str) -> datetime:
    if _FORM.fullmatch(text):
        try:
            return datetime.fromisoformat(text)
        except ValueError as error:
            raise ValidationError(f"local is {text!r}, but {error}", what="local") from error
    raise ValidationError(f"local must be 'YYYY-MM-DD HH:MM' or with seconds, not {text!r:.200}", what="local")
