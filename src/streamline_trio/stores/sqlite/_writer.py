"""Batches as transactions, and what becomes of a batch in which one write breaks the transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import NamedTuple

from streamline_trio._core.errors import StreamlineError
from streamline_trio._core.store import Failed, Verdict, Write
from streamline_trio.stores.sqlite._changes import Ready, make_ready
from streamline_trio.stores.sqlite._transaction import Transaction

# What one write alone can cause: a value the database cannot hold, or one that breaks a constraint.
_POISON = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    ValueError,
)


def _never() -> bool:
    return False


class NotBegun(Exception):
    """Nobody wants the write any more, and certainly nothing was written."""


class Turn(NamedTuple):
    """How long to wait for the write lock: so many times the connection's own time-out, or until given up."""

    tries: int = 1
    is_given_up: Callable[[], bool] = _never

    def take(self, connection: sqlite3.Connection) -> None:
        """Begin a transaction that can write."""
        for left in reversed(range(self.tries)):
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or not left:
                    raise
                if self.is_given_up():
                    raise NotBegun from error
            else:
                return


_ONE_TRY = Turn()


def write(connection: sqlite3.Connection, batch: Sequence[Write], turn: Turn = _ONE_TRY) -> list[Verdict]:
    """Apply the batch in one transaction, durable on return.

    A write that cannot be stored must not keep others from being stored: when one breaks the transaction, which
    is then rolled back, each is tried again in a transaction of its own. `sqlite3.Error` means that any of them
    may or may not be applied, `NotBegun` that none is.
    """
    ready = [make_ready(item) for item in batch]
    try:
        return _transact(connection, ready, turn)
    except _POISON as error:
        if len(ready) == 1:
            return [Failed(_as_ours(error))]
    # From the first of them on something may be written.
    patient = turn._replace(is_given_up=_never)
    return [_alone(connection, item, patient) for item in ready]


def _alone(connection: sqlite3.Connection, item: Ready, turn: Turn) -> Verdict:
    try:
        return _transact(connection, [item], turn)[0]
    except _POISON as error:
        return Failed(_as_ours(error))


def _transact(connection: sqlite3.Connection, ready: list[Ready], turn: Turn) -> list[Verdict]:
    turn.take(connection)
    try:
        verdicts = Transaction(connection, ready).run()
        connection.execute("COMMIT")
    finally:
        # Some errors have ended the transaction already; a second rollback would hide them.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return verdicts


def _as_ours(error: Exception) -> StreamlineError:
    ours = StreamlineError(f"the write cannot be stored: {error}")
    ours.__cause__ = error
    return ours
