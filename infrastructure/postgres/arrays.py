"""Arrays packed as PostgreSQL takes them in binary.

psycopg asks each element what it is, at every call: in an append that costs more than all the rest of it in Python.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from struct import Struct
from uuid import UUID

from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

from coupon_clock.infrastructure.postgres.binary_cursor import ADAPTERS, EPOCH

MICROSECOND = timedelta(microseconds=1)

HEADER = Struct("!iiIii")
BIGINT = Struct("!iq")
EIGHT = (8).to_bytes(4, "big")
SIXTEEN = (16).to_bytes(4, "big")
NULL = (-1).to_bytes(4, "big", signed=True)


class Uuids(bytes):
    """uuid[]"""


class Bigints(bytes):
    """bigint[]"""


class Texts(bytes):
    """text[]"""


class Byteas(bytes):
    """bytea[]"""


class Timestamps(bytes):
    """timestamptz[]"""


def uuids(values: Sequence[UUID]) -> Uuids:
    return Uuids(_header(2950, values) + _joined(SIXTEEN, [value.int.to_bytes(16, "big") for value in values]))


def bigints(values: Sequence[int]) -> Bigints:
    return Bigints(_header(20, values) + _joined(EIGHT, [value.to_bytes(8, "big", signed=True) for value in values]))


def texts(values: Sequence[str | None]) -> Texts:
    return Texts(_header(25, values) + _variable(None if value is None else value.encode() for value in values))


def byteas(values: Sequence[bytes | None]) -> Byteas:
    return Byteas(_header(17, values) + _variable(values))


def timestamps(values: Sequence[datetime | None]) -> Timestamps:
    """Aware times, or none."""
    packed = [NULL if value is None else BIGINT.pack(8, (value - EPOCH) // MICROSECOND) for value in values]
    return Timestamps(_header(1184, values) + b"".join(packed))


def _header(element_oid: int, values: Sequence[object]) -> bytes:
    """One dimension, which may hold nulls, counted from 1; none at all where there are no values."""
    if not values:
        return HEADER.pack(0, 0, element_oid, 0, 0)[:12]
    return HEADER.pack(1, 1, element_oid, len(values), 1)


def _joined(length: bytes, values: Sequence[bytes]) -> bytes:
    """Each with its length before it."""
    return length + length.join(values) if values else b""


def _variable(values: Iterable[bytes | None]) -> bytes:
    return b"".join([NULL if value is None else len(value).to_bytes(4, "big") + value for value in values])


class AsItIs(Dumper):
    format = Format.BINARY

    def dump(self, obj: Buffer) -> Buffer:
        return obj


for kind, array_oid in ((Uuids, 2951), (Bigints, 1016), (Texts, 1009), (Byteas, 1001), (Timestamps, 1185)):
    ADAPTERS.register_dumper(kind, type(f"{kind.__name__}AsTheyAre", (AsItIs,), {"oid": array_oid}))
