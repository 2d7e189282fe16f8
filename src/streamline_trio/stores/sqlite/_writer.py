"""Batches as transactions, and what becomes of a batch in which one write breaks the transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

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


def write(connection: sqlite3.Connection, batch: Sequence[Write]) -> list[Verdict]:
    """Apply the batch in one transaction, durable on return.

    A write that cannot be stored must not keep others from being stored: when one breaks the transaction, which
    is then rolled back, each is tried again in a transaction of its own. `sqlite3.Error` means that any of them
    may or may not be applied.
    """
    ready = [make_ready(item) for item in batch]
    try:
        return _transact(connection, ready)
    except _POISON as error:
        if len(ready) == 1:
            return [Failed(_as_ours(error))]
    return [_alone(connection, item) for item in ready]


def _alone(connection: sqlite3.Connection, item: Ready) -> Verdict:
    try:
        return _transact(connection, [item])[0]
    except _POISON as error:
        return Failed(_as_ours(error))


def _transact(connection: sqlite3.Connection, ready: list[Ready]) -> list[Verdict]:
    connection.execute("BEGIN IMMEDIATE")
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
