"""A projection's rows as they are stored, and in what they differ from the rows that they should be."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct, field
from msgspec.structs import astuple
from psycopg import Connection
from psycopg.rows import TupleRow
from sqlalchemy import BigInteger, Date, DateTime, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB

from coupon_clock.infrastructure.event_store.bulk_reader import copied
from coupon_clock.infrastructure.postgres.database import Schema
from coupon_clock.projections.engine.projection import Projection, same_shape

TYPES: dict[type, str] = {
    Uuid: "uuid", BigInteger: "int8", Text: "text", DateTime: "timestamptz", Date: "date", JSONB: "bytea"
}  # fmt: skip


class Difference(Struct, frozen=True):
    """`table`'s row `id` has `is_value` in `column`, and the log says `should_be`; `column` "row" where one of the
    two is missing. `id`: the stream's, or the row's key where that is another."""

    table: str
    id: UUID | str
    column: str
    is_value: object = field(name="is")
    should_be: object


LEFT_OUT, READABLE = "left out", "readable"
"""The column, and what it should be, of a stream of which not all can be taken in; it "is" the reason."""


class StoredRows:
    """Of one projection. Most are compared by one comparison."""

    def __init__(self, projection: Projection[Any]) -> None:
        self._projection = projection
        self._table = projection.table(projection.name)
        self._columns = projection.row.__struct_fields__
        self._key = [column.name for column in self._table.primary_key.columns]
        self._jsonb = [n for n, column in enumerate(self._table.columns) if isinstance(column.type, JSONB)]
        self.key_length = len(self._key)

    @contextmanager
    def rows(
        self, connection: Connection[TupleRow], schema: Schema, ids: list[UUID] | None
    ) -> Iterator[Iterator[tuple[Any, ...]]]:
        """Gives the live rows, in order of their keys."""
        where = "" if ids is None else f"WHERE {self._key[0]} = ANY(%(ids)s::uuid[])"
        statement = (
            f"COPY (SELECT {', '.join(self._columns)} FROM {{schema}}.{{name}} {where} "
            f"ORDER BY {', '.join(self._key)}) TO STDOUT (FORMAT BINARY)"
        )
        types = [TYPES[type(column.type)] for column in self._table.columns]
        with (
            same_shape(self._projection),
            copied(connection, schema.sql(statement, name=self._table.name), types, {"ids": ids}) as rows,
        ):
            yield rows

    def differences(self, row_id: UUID | str, found: tuple[Any, ...] | None, row: Struct | None) -> list[Difference]:
        if found is None and row is None:
            return []
        if found is None or row is None:
            return [Difference(self._projection.name, row_id, "row", _presence(found), _presence(row))]
        values, should_be = self._decoded(found), self._as_stored(row)
        if values == should_be:
            return []
        return [
            Difference(self._projection.name, row_id, column, value, wanted)
            for column, value, wanted in zip(self._columns, values, should_be, strict=True)
            if value != wanted
        ]

    def _decoded(self, found: tuple[Any, ...]) -> list[Any]:
        values = list(found)
        for n in self._jsonb:
            values[n] = decoded(values[n])
        return values

    def _as_stored(self, row: Struct) -> list[Any]:
        values = list(astuple(row))
        for n in self._jsonb:
            values[n] = msgspec.to_builtins(values[n])
        return values


@lru_cache(maxsize=10_000)
def decoded(jsonb: bytes | None) -> object:
    """Rules repeat from row to row, so most are decoded once. The first byte is the format's version."""
    return None if jsonb is None else msgspec.json.decode(jsonb[1:])


def _presence(row: object) -> str:
    return "missing" if row is None else "present"
