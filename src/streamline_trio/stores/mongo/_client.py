"""The connection: how it is made, what the server is, and whose errors are whose."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from streamline_trio._core.errors import StoreUnavailable, ValidationError

Stored = dict[str, Any]

OLDEST_WIRE_VERSION = 13  # MongoDB 5.0
CLIENT_BULK_WIRE_VERSION = 25  # MongoDB 8.0

DURABLE = WriteConcern(w="majority", j=True)
CODEC: CodecOptions[Stored] = CodecOptions(
    document_class=dict, tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_MS
)

# A server that says one of these to a single write of a batch is in trouble; of any other, the write is at fault.
TRANSIENT = frozenset(
    {6, 7, 11, 24, 43, 46, 50, 63, 64, 89, 91, 112, 117, 133, 134, 150, 189, 202, 234, 237, 262, 290, 314, 317}
    | {333, 358, 384, 9001, 10058, 10107, 11600, 11601, 11602, 13388, 13435, 13436, 14031}
)
DUPLICATE_KEY = 11000
_FOUND_IN = 30.0
TOO_LARGE = frozenset({10334, 17419, 17420})


class Server(NamedTuple):
    """What the server can do."""

    is_replicated: bool
    has_client_bulk: bool


def connect(url: str, pool_size: int, timeout: float) -> MongoClient[Stored]:
    """A client of our own; options that the URL gives itself are kept."""
    options: dict[str, Any] = {"appname": "streamline_trio", "timeoutMS": math.ceil(timeout * 1000)}
    # A call may be given an hour, to build an index; a server that is not there is missed sooner.
    found_in = min(timeout, _FOUND_IN)
    options |= {"serverSelectionTimeoutMS": math.ceil(found_in * 1000), "retryWrites": True}
    given = url.partition("?")[2].lower()
    options = {name: value for name, value in options.items() if f"{name.lower()}=" not in given}
    return MongoClient(url, maxPoolSize=pool_size, **options)


def ours(database: Database[Any]) -> Database[Stored]:
    """The database as this store uses it, whatever its client is set to."""
    return database.with_options(
        codec_options=CODEC,
        read_preference=ReadPreference.PRIMARY,
        write_concern=DURABLE,
        read_concern=ReadConcern("majority"),
    )


def look_at(database: Database[Stored]) -> Server:
    """Ask the server what it is; `ValidationError` for one that is too old."""
    hello = database.client.admin.command("hello")
    version = int(hello.get("maxWireVersion", 0))
    if version < OLDEST_WIRE_VERSION:
        raise ValidationError("a MongoStore needs MongoDB 5.0 or newer")
    return Server(
        is_replicated="setName" in hello or hello.get("msg") == "isdbgrid",
        has_client_bulk=version >= CLIENT_BULK_WIRE_VERSION,
    )


def unavailable(error: PyMongoError, where: str) -> StoreUnavailable:
    """Our error for one of the driver."""
    told = str(error).partition(", full error:")[0]
    return StoreUnavailable(f"{where}: {told}", path=where)
