"""Rows as PostgreSQL's binary COPY takes them: built in one go, because a rebuild writes nothing else."""

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from struct import Struct as Packed
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import BigInteger, Date, DateTime, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
FIRST_DAY = date(2000, 1, 1).toordinal()
MICROSECOND = timedelta(microseconds=1)

length = Packed(">i").pack
sized_bigint = Packed(">iq").pack
sized_integer = Packed(">ii").pack

Field = Callable[[Any], bytes]


def uuid(value: UUID) -> bytes:
    return b"\0\0\0\x10" + value.bytes


def bigint(value: int) -> bytes:
    return sized_bigint(8, value)


def text(value: str) -> bytes:
    data = value.encode()
    return length(len(data)) + data


def time(value: datetime) -> bytes:
    return sized_bigint(8, (value - EPOCH) // MICROSECOND)


def day(value: date) -> bytes:
    return sized_integer(4, value.toordinal() - FIRST_DAY)


def json(value: object) -> bytes:
    data = msgspec.json.encode(value)
    return length(len(data) + 1) + b"\x01" + data


FIELDS: dict[type, Field] = {Uuid: uuid, BigInteger: bigint, Text: text, DateTime: time, Date: day, JSONB: json}


def encoder(table: Table) -> Callable[[Sequence[Any]], bytes]:
    """What makes a row of that table of its values, in the order of the columns."""
    fields = [FIELDS[type(column.type)] for column in table.columns]
    begin = Packed(">h").pack(len(fields))

    def encode(values: Sequence[Any]) -> bytes:
        parts = [NULL if value is None else field(value) for field, value in zip(fields, values, strict=True)]
        return begin + b"".join(parts)

    return encode
