"""The read model of coupon templates: its table, its fold, its queries. One row a template.

States come from the time, so that nothing is called usable at or after its end, however far behind the rows are.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from psycopg import Connection
from psycopg.rows import TupleRow, dict_row
from psycopg.types.json import Jsonb
from sqlalchemy import BigInteger, Column, DateTime, Index, MetaData, Select, Table, Text, Uuid, func, select, true
from sqlalchemy.dialects.postgresql import JSONB, psycopg
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.sql.elements import ColumnElement

from coupon_clock.domain.discount import Discount
from coupon_clock.domain.events import (
    ConsumeRule,
    Created,
    Ended,
    EndReason,
    Event,
    ReceiveRule,
    StockIncreased,
    ValidityChanged,
)
from coupon_clock.infrastructure.event_store import Envelope

NAME = "coupon_template"
FOLD_VERSION = 1
LARGEST_PAGE = 1_000
DIALECT = psycopg.dialect()  # type: ignore[no-untyped-call]
# Read once a statement: the function is volatile, and all rows must be filtered and judged at one time.
CLOCK = select(func.coupon_clock_now().label("as_of")).cte("clock").prefix_with("MATERIALIZED")

State = Literal["upcoming", "active", "over"]


def table(name: str = NAME) -> Table:
    """The table, or a shadow of it under another name."""
    time = DateTime(timezone=True)
    columns = Table(
        name,
        MetaData(),
        Column("template_id", Uuid, primary_key=True),
        Column("shop_number", BigInteger, nullable=False),
        Column("name", Text, nullable=False),
        Column("source", Text, nullable=False),
        Column("target", Text, nullable=False),
        Column("goods", Text),
        Column("discount", JSONB, nullable=False),
        Column("receive_rule", JSONB, nullable=False),
        Column("consume_rule", JSONB, nullable=False),
        Column("valid_from", time, nullable=False),
        Column("valid_until", time, nullable=False),
        Column("stock", BigInteger, nullable=False),
        Column("reason", Text),
        Column("ended_at", time),
        Column("version", BigInteger, nullable=False),
        Column("position", BigInteger, nullable=False),
    )
    Index(f"{name}_shop_idx", columns.c.shop_number, columns.c.template_id)
    Index(f"{name}_shop_end_idx", columns.c.shop_number, columns.c.valid_until, columns.c.template_id)
    return columns


LIVE = table()


class TemplateRow(Struct, frozen=True, kw_only=True):
    """One row, column by column; `position` is that of the event that last changed it."""

    template_id: UUID
    shop_number: int
    name: str
    source: str
    target: str
    goods: str | None
    discount: Discount
    receive_rule: ReceiveRule
    consume_rule: ConsumeRule
    valid_from: datetime
    valid_until: datetime
    stock: int
    reason: EndReason | None = None
    ended_at: datetime | None = None
    version: int
    position: int


class TemplateView(TemplateRow, frozen=True, kw_only=True):
    """A row as of `as_of`, PostgreSQL's time when it was read."""

    as_of: datetime

    @property
    def state(self) -> State:
        if self.ended_at is not None or self.as_of >= self.valid_until:
            return "over"
        return "upcoming" if self.as_of < self.valid_from else "active"

    @property
    def is_usable(self) -> bool:
        return self.state == "active"


# ── fold ─────────────────────────────────────────────────────────────────────────────────────────


def fold(row: TemplateRow | None, envelope: Envelope[Event]) -> TemplateRow:
    """The row after one more event: the same for the projector, a rebuild and a check."""
    event = envelope.event
    place: dict[str, Any] = {"version": envelope.version, "position": envelope.position}
    if isinstance(event, Created):
        return TemplateRow(**msgspec.structs.asdict(event), **place)
    assert row is not None, "a stream begins with Created"
    match event:
        case StockIncreased():
            return replace(row, stock=row.stock + event.by, **place)
        case ValidityChanged():
            return replace(row, valid_from=event.valid_from, valid_until=event.valid_until, **place)
        case Ended():
            return replace(row, reason=event.reason, ended_at=event.ended_at, **place)


# ── rows in and out ──────────────────────────────────────────────────────────────────────────────


def create_table(connection: Connection[TupleRow], name: str = NAME) -> None:
    """With its indexes, where it is missing."""
    made = table(name)
    connection.execute(str(CreateTable(made, if_not_exists=True).compile(dialect=DIALECT)))
    for index in made.indexes:
        connection.execute(str(CreateIndex(index, if_not_exists=True).compile(dialect=DIALECT)))


def load_rows(connection: Connection[TupleRow], ids: Sequence[UUID], name: str = NAME) -> dict[UUID, TemplateRow]:
    columns = table(name)
    found = run(connection, select(columns).where(columns.c.template_id == func.any(list(ids))))
    return {row["template_id"]: msgspec.convert(row, TemplateRow) for row in found}


def save_rows(connection: Connection[TupleRow], rows: Sequence[TemplateRow], name: str = NAME) -> None:
    columns = [column.name for column in table(name).columns]
    statement = (
        f"INSERT INTO {name} ({', '.join(columns)}) "
        f"VALUES ({', '.join(f'%({column})s' for column in columns)}) "
        f"ON CONFLICT (template_id) DO UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in columns[1:])}"
    )
    with connection.cursor() as cursor:
        cursor.executemany(statement, [stored(row) for row in rows])


def stored(row: TemplateRow) -> dict[str, object]:
    """Column by column, as PostgreSQL takes it."""
    nested = ("discount", "receive_rule", "consume_rule")
    return msgspec.structs.asdict(row) | {name: Jsonb(msgspec.to_builtins(getattr(row, name))) for name in nested}


# ── queries ──────────────────────────────────────────────────────────────────────────────────────


class Filters(Struct, frozen=True, kw_only=True):
    """All that are given must hold. `state`: by PostgreSQL's time; `ended`: whether its Ended is recorded;
    `ends_before` and `ends_after` bound `valid_until`, both excluded; `discount`: FixedAmount, ThresholdAmount,
    Percentage."""

    name_contains: str | None = None
    goods: str | None = None
    target: str | None = None
    discount: str | None = None
    state: State | None = None
    ended: bool | None = None
    ends_before: datetime | None = None
    ends_after: datetime | None = None


class Page(Struct, frozen=True):
    """Views in order of their ids, oldest template first; `after`: the cursor of the next page, None at the end."""

    views: list[TemplateView]
    after: UUID | None


def position(connection: Connection[TupleRow]) -> int:
    """Up to where in the log the rows are."""
    row = connection.execute("SELECT position FROM checkpoint WHERE name = %s", (NAME,), prepare=True).fetchone()
    return row[0] if row else 0


def find(connection: Connection[TupleRow], shop_number: int, template_id: UUID) -> TemplateView | None:
    columns = LIVE.c
    wanted = (columns.shop_number == shop_number) & (columns.template_id == template_id)
    views = viewed(connection, _rows_as_of_now().where(wanted))
    return views[0] if views else None


def page(connection: Connection[TupleRow], shop_number: int, filters: Filters, after: UUID | None, limit: int) -> Page:
    columns = LIVE.c
    limit = max(1, min(limit, LARGEST_PAGE))
    wanted = [columns.shop_number == shop_number, *_conditions(filters)]
    if after is not None:
        wanted.append(columns.template_id > after)
    views = viewed(connection, _rows_as_of_now().where(*wanted).order_by(columns.template_id).limit(limit + 1))
    more = len(views) > limit
    return Page(views[:limit], views[limit - 1].template_id if more else None)


def _rows_as_of_now() -> Select[Any]:
    return select(LIVE, CLOCK.c.as_of).select_from(CLOCK.join(LIVE, onclause=true()))


def _conditions(filters: Filters) -> Iterator[ColumnElement[bool]]:
    columns = LIVE.c
    if filters.name_contains is not None:
        yield columns.name.contains(filters.name_contains, autoescape=True)
    if filters.goods is not None:
        yield columns.goods == filters.goods
    if filters.target is not None:
        yield columns.target == filters.target
    if filters.discount is not None:
        yield columns.discount["type"].astext == filters.discount
    if filters.state is not None:
        yield _in_state(filters.state)
    if filters.ended is not None:
        yield columns.ended_at.is_not(None) if filters.ended else columns.ended_at.is_(None)
    if filters.ends_before is not None:
        yield columns.valid_until < filters.ends_before
    if filters.ends_after is not None:
        yield columns.valid_until > filters.ends_after


def _in_state(state: State) -> ColumnElement[bool]:
    columns = LIVE.c
    now = CLOCK.c.as_of
    is_over = columns.ended_at.is_not(None) | (columns.valid_until <= now)
    match state:
        case "over":
            return is_over
        case "upcoming":
            return ~is_over & (columns.valid_from > now)
        case "active":
            return ~is_over & (columns.valid_from <= now)


def viewed(connection: Connection[TupleRow], statement: Select[Any]) -> list[TemplateView]:
    return [msgspec.convert(row, TemplateView) for row in run(connection, statement)]


def run(connection: Connection[TupleRow], statement: Select[Any]) -> list[dict[str, Any]]:
    """SQLAlchemy writes the statement, psycopg runs it: the same connections, pool and transactions as all else."""
    compiled = statement.compile(dialect=DIALECT)
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(str(compiled), compiled.params).fetchall()
