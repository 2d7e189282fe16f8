"""What a MongoDB client sends, by pymongo's command monitoring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

_WRITES = {"bulkWrite": "ops", "insert": "documents", "update": "updates", "delete": "deletes"}


class Command(NamedTuple):
    """One command: its name, the collection (none if it is for the server), and how many documents it writes."""

    name: str
    collection: str
    writes: int


class Commands(CommandListener):
    """Remembers each command, in the order in which they were sent."""

    def __init__(self) -> None:
        self._sent: list[Command] = []

    def __iter__(self) -> Iterator[Command]:
        return iter(tuple(self._sent))

    def clear(self) -> None:
        self._sent.clear()

    @property
    def round_trips(self) -> int:
        """How many there were, without those by which a change stream waits for what others write."""
        return sum(sent.name != "getMore" for sent in self)

    def started(self, event: CommandStartedEvent) -> None:
        self._sent.append(_command(event.command_name, event.command))

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass


def _command(name: str, command: Mapping[str, Any]) -> Command:
    about = command[name]
    writes = command.get(_WRITES.get(name, ""), ())
    return Command(name, about if isinstance(about, str) else "", len(writes))
