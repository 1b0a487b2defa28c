"""Arrays packed as PostgreSQL takes them in binary.

psycopg asks each element what it is, at every call: in an append that costs more than all the rest of it in Python.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from operator import attrgetter
from struct import Struct
from typing import Any, TypeVar

from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

from coupon_clock.infrastructure.postgres.binary_cursor import ADAPTERS, EPOCH, INT8

MICROSECOND = timedelta(microseconds=1)

EMPTY = Struct("!iiI")
HEADER = Struct("!iiIii")
LENGTH = Struct("!i")
NULL = LENGTH.pack(-1)


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


def microseconds(at: datetime) -> bytes:
    return INT8.pack((at - EPOCH) // MICROSECOND)


ELEMENTS: dict[type[bytes], tuple[int, Callable[[Any], bytes]]] = {
    Uuids: (2950, attrgetter("bytes")),
    Bigints: (20, INT8.pack),
    Texts: (25, str.encode),
    Byteas: (17, bytes),
    Timestamps: (1184, microseconds),
}
"""The type of the elements, and how one is written."""

Kind = TypeVar("Kind", bound=bytes)


def packed(kind: type[Kind], values: Sequence[Any]) -> Kind:
    """One array, which may hold None. Times must be aware."""
    element, write = ELEMENTS[kind]
    if not values:
        return kind(EMPTY.pack(0, 0, element))
    parts = [HEADER.pack(1, 1, element, len(values), 1)]
    for value in values:
        if value is None:
            parts.append(NULL)
        else:
            written = write(value)
            parts.append(LENGTH.pack(len(written)))
            parts.append(written)
    return kind(b"".join(parts))


uuids = partial(packed, Uuids)
timestamps = partial(packed, Timestamps)


class AsItIs(Dumper):
    format = Format.BINARY

    def dump(self, obj: Buffer) -> Buffer:
        return obj


for kind, array_oid in ((Uuids, 2951), (Bigints, 1016), (Texts, 1009), (Byteas, 1001), (Timestamps, 1185)):
    ADAPTERS.register_dumper(kind, type(f"{kind.__name__}AsTheyAre", (AsItIs,), {"oid": array_oid}))
