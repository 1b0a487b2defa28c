"""Cursors that read and write alike in every session: results in binary and times in UTC, whatever DateStyle, TimeZone
and adapters a session or its connection has been given."""

from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.abc import Buffer
from psycopg.adapt import AdaptersMap, Loader
from psycopg.pq import Format
from psycopg.rows import TupleRow

UNCHANGED = AdaptersMap(psycopg.adapters)
"""psycopg's; what a host registers with psycopg later is not among them."""
ADAPTERS = AdaptersMap(UNCHANGED)
"""With those of this package."""

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
INT8 = Struct("!q")


class UtcLoader(Loader):
    """psycopg's own puts times into the session's TimeZone."""

    format = Format.BINARY

    def load(self, data: Buffer) -> datetime:
        try:
            return EPOCH + timedelta(microseconds=INT8.unpack(data)[0])
        except OverflowError as error:
            raise psycopg.DataError("a time beyond the years 1 to 9999") from error


ADAPTERS.register_loader("timestamptz", UtcLoader)


class CopyCursor(psycopg.Cursor[TupleRow]):
    """For COPY within a transaction whose TimeZone is UTC: psycopg's own loaders are written in C."""

    @property
    def adapters(self) -> AdaptersMap:
        return UNCHANGED


class BinaryCursor(psycopg.Cursor[TupleRow]):
    """For one statement at a time: PostgreSQL returns binary results of a single statement only."""

    def __init__(self, connection: Connection[Any], **options: Any) -> None:
        super().__init__(connection, **options)
        self.format = Format.BINARY
        self._own_adapters = AdaptersMap(ADAPTERS)

    @property
    def adapters(self) -> AdaptersMap:
        return self._own_adapters
