"""Rows of a projection in PostgreSQL: tables, rows in, rows out. Statements are derived from the table, once each."""

from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime
from functools import cache
from types import NoneType
from typing import Any, NamedTuple, get_args
from uuid import UUID

import msgspec
from msgspec import Struct
from msgspec.structs import FieldInfo, astuple, fields
from psycopg import Connection
from psycopg.rows import TupleRow, dict_row
from psycopg.sql import SQL, Identifier, Literal
from psycopg.types.json import set_json_dumps
from sqlalchemy import BigInteger, Column, Date, DateTime, MetaData, Select, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB, psycopg
from sqlalchemy.schema import AddConstraint, CreateColumn, CreateIndex, CreateTable
from sqlalchemy.sql.elements import quoted_name
from sqlalchemy.sql.expression import ClauseElement

from coupon_clock.domain.errors import InvalidArgument, Problem
from coupon_clock.infrastructure.event_store.migrations import ForeignTable
from coupon_clock.infrastructure.postgres.database import Schema, fetch_one
from coupon_clock.projections.engine.projection import Key, Projection, Row

DIALECT = psycopg.dialect()  # type: ignore[no-untyped-call]

BEGIN = (
    "INSERT INTO {schema}.checkpoint (name, kind, position, fold_version) VALUES ({name}, 'projection', 0, {fold}) "
    "ON CONFLICT DO NOTHING"
)

EXISTS = "SELECT to_regclass('{schema}.{name}') IS NOT NULL, to_regclass('{schema}.projection_table') IS NOT NULL"
IS_MIGRATED = "SELECT to_regclass('{schema}.projection_table') IS NOT NULL"
IS_FOLLOWER = "SELECT EXISTS (SELECT FROM {schema}.checkpoint WHERE name = %s AND kind = 'follower')"
IS_OURS = "SELECT EXISTS (SELECT FROM {schema}.projection_table WHERE relation = '{schema}.{name}'::regclass)"
NOTE = "INSERT INTO {schema}.projection_table VALUES ('{schema}.{name}'::regclass)"
FORGET = "DELETE FROM {schema}.projection_table WHERE relation = '{schema}.{name}'::regclass"

COLUMN_TYPES: dict[object, Any] = {
    UUID: Uuid,
    int: BigInteger,
    str: Text,
    datetime: DateTime(timezone=True),
    date: Date,
}


def columns_of(row: type[Struct], key: Sequence[str]) -> list[Column[Any]]:
    """A column for each field of `row`: NOT NULL unless it may be None, jsonb for what has fields itself."""

    def column(field: FieldInfo) -> Column[Any]:
        types = [each for each in get_args(field.type) or (field.type,) if each is not NoneType]
        is_text = isinstance(types[0], type) and issubclass(types[0], str)
        column_type = Text if is_text else COLUMN_TYPES.get(types[0], JSONB)
        is_key = field.name in key
        return Column(
            field.name, column_type, primary_key=is_key, autoincrement=False, nullable=NoneType in get_args(field.type)
        )

    return [column(field) for field in fields(row)]


def in_schema(table: Table) -> Table:
    """The table in `{schema}`, which `Schema.sql` fills in."""
    return table.to_metadata(MetaData(), schema=quoted_name("{schema}", quote=False))


def missing(connection: Connection[TupleRow], schema: Schema, projection: Projection[Any]) -> list[bytes]:
    """Returns what makes the live table, its indexes and its checkpoint, where there is none.

    Raises ForeignTable, and InvalidArgument where a follower of the log has the name.
    """
    if exists(connection, schema, projection.name):
        return []
    refuse_name_of_follower(connection, schema, projection.name)
    table = in_schema(projection.table(projection.name))
    names = {
        "schema": Identifier(schema.name),
        "name": Literal(projection.name),
        "fold": Literal(projection.fold_version),
    }
    return [
        schema.sql(sql(CreateTable(table))),
        *(schema.sql(sql(CreateIndex(index))) for index in table.indexes),
        schema.sql(NOTE, name=projection.name),
        SQL(BEGIN).format(**names).as_bytes(None),
    ]


def refuse_name_of_follower(connection: Connection[TupleRow], schema: Schema, name: str) -> None:
    (is_migrated,) = fetch_one(connection, schema.sql(IS_MIGRATED))
    if is_migrated and fetch_one(connection, schema.sql(IS_FOLLOWER), name)[0]:
        raise InvalidArgument([Problem("name", name, "is the name of a follower of the log already")])


def exists(connection: Connection[TupleRow], schema: Schema, name: str) -> bool:
    """Whether there is such a table of ours. Raises ForeignTable where something else has its name."""
    there, is_migrated = fetch_one(connection, schema.sql(EXISTS, name=name))
    if there and not (is_migrated and fetch_one(connection, schema.sql(IS_OURS, name=name))[0]):
        raise ForeignTable(schema.name, f"{name} was not made by coupon-clock")
    return bool(there)


def create_bare(connection: Connection[TupleRow], schema: Schema, table: Table) -> None:
    """Without key and indexes, which cost less once the rows are in."""
    columns = ", ".join(sql(CreateColumn(column)) for column in table.columns)
    connection.execute(schema.sql(f"CREATE TABLE {{schema}}.{{name}} ({columns})", name=table.name))
    connection.execute(schema.sql(NOTE, name=table.name))


def keep_copy(connection: Connection[TupleRow], schema: Schema, name: str, kept: str) -> None:
    """The rows as they are, in a table of another name. Raises ForeignTable."""
    drop(connection, schema, kept)
    connection.execute(schema.sql("CREATE TABLE {schema}.{kept} AS TABLE {schema}.{name}", name=name, kept=kept))
    connection.execute(schema.sql(NOTE, name=kept))


def add_missing_indexes(connection: Connection[TupleRow], schema: Schema, projection: Projection[Any]) -> None:
    for index in in_schema(projection.table(projection.name)).indexes:
        connection.execute(schema.sql(sql(CreateIndex(index, if_not_exists=True))))


def drop(connection: Connection[TupleRow], schema: Schema, name: str) -> None:
    """If there is one of ours. Raises ForeignTable."""
    if exists(connection, schema, name):
        connection.execute(schema.sql(FORGET, name=name))
        connection.execute(schema.sql("DROP TABLE {schema}.{name}", name=name))


def complete(connection: Connection[TupleRow], schema: Schema, table: Table) -> None:
    """Adds to a bare table what it lacks."""
    table = in_schema(table)
    connection.execute(schema.sql(sql(AddConstraint(table.primary_key))))
    for index in table.indexes:
        connection.execute(schema.sql(sql(CreateIndex(index))))
    connection.execute(schema.sql("ANALYZE {schema}.{name}", name=table.name))


def load(
    connection: Connection[TupleRow], schema: Schema, projection: Projection[Row], table: str, keys: Iterable[Key]
) -> dict[Key, Row]:
    """The rows that exist of those keys."""
    keys = list(keys)
    if not keys:
        return {}
    statements = statements_of(schema, projection, table)
    columns = [list(column) for column in zip(*keys, strict=True)]
    (stored,) = connection.execute(statements.load, columns).fetchone() or ("[]",)
    rows: list[Row] = statements.decode(stored)
    return {tuple(getattr(row, name) for name in statements.key): row for row in rows}


def save(
    connection: Connection[TupleRow], schema: Schema, projection: Projection[Row], table: str, rows: Sequence[Row]
) -> None:
    """Inserts or replaces."""
    stored = msgspec.json.encode(rows).decode()
    connection.execute(statements_of(schema, projection, table).save, (stored,))


def delete(
    connection: Connection[TupleRow], schema: Schema, projection: Projection[Row], table: str, key: object
) -> None:
    """The row with this key, of one column."""
    (column,) = statements_of(schema, projection, table).key
    connection.execute(schema.sql("DELETE FROM {schema}.{name} WHERE {key} = %s", name=table, key=column), (key,))


def copy_in(
    connection: Connection[TupleRow], schema: Schema, projection: Projection[Row], table: str, rows: Iterable[Row]
) -> None:
    """Inserts rows whose keys are new."""
    statements = statements_of(schema, projection, table)
    with connection.cursor() as cursor:
        set_json_dumps(msgspec.json.encode, cursor)
        with cursor.copy(statements.copy) as copy:
            copy.set_types(statements.types)
            for row in rows:
                copy.write_row(astuple(row))


class Statements(NamedTuple):
    """`key`: the names of its columns; `types`: of all columns; `decode`: of many rows. All rows of a load or a save
    travel in one JSON text, because that is what msgspec and PostgreSQL both are quickest at: a third of the time of
    arrays or of one statement a row."""

    key: tuple[str, ...]
    types: list[str]
    load: bytes
    save: bytes
    copy: bytes
    decode: Callable[[str], Any]


@cache
def statements_of(schema: Schema, projection: Projection[Any], name: str) -> Statements:
    table = projection.table(name)
    columns = projection.row.__struct_fields__
    types = [column.type.compile(dialect=DIALECT).lower() for column in table.columns]
    key = tuple(str(column.name) for column in table.primary_key.columns)
    others = [column for column in columns if column not in key]
    arrays = [f"%s::{types[columns.index(column)]}[]" for column in key]
    return Statements(
        key=key,
        types=types,
        load=schema.sql(
            "SELECT coalesce(json_agg({name}), '[]')::text FROM {schema}.{name} "
            f"JOIN unnest({', '.join(arrays)}) AS wanted ({', '.join(key)}) "
            f"USING ({', '.join(key)})",
            name=name,
        ),
        save=schema.sql(
            f"INSERT INTO {{schema}}.{{name}} ({', '.join(columns)}) "
            f"SELECT {', '.join(columns)} FROM json_populate_recordset(NULL::{{schema}}.{{name}}, %s) "
            f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in others)}",
            name=name,
        ),
        copy=schema.sql("COPY {schema}.{name} FROM STDIN (FORMAT BINARY)", name=name),
        decode=msgspec.json.Decoder(list[projection.row]).decode,  # type: ignore[name-defined]
    )


def selected(connection: Connection[TupleRow], schema: Schema, statement: Select[Any]) -> list[dict[str, Any]]:
    """SQLAlchemy writes the statement, psycopg runs it: the same connections, pool and transactions as all else."""
    compiled = statement.compile(dialect=DIALECT)
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(schema.sql(str(compiled)), compiled.params).fetchall()


def sql(element: ClauseElement) -> str:
    return str(element.compile(dialect=DIALECT))
