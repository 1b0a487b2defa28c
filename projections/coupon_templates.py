"""The read model of coupon templates: its table, its fold, its queries. One row a template.

States come from the time, so that nothing is called usable at or after its end, however far behind the rows are.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import reduce
from typing import Any, Literal, get_args
from uuid import UUID

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace
from psycopg import Connection
from psycopg.rows import TupleRow
from sqlalchemy import Index, MetaData, Select, Table, literal_column, select
from sqlalchemy.sql.elements import ColumnElement

from coupon_clock.domain import arguments, rules
from coupon_clock.domain.discount import Discount
from coupon_clock.domain.events import (
    Created,
    Ended,
    EndReason,
    Event,
    StockIncreased,
    TemplateFields,
    ValidityChanged,
)
from coupon_clock.domain.rules import Problems
from coupon_clock.domain.texts import normalized
from coupon_clock.domain.validity import utc
from coupon_clock.infrastructure.event_store.store import Envelope
from coupon_clock.infrastructure.postgres.database import Schema
from coupon_clock.projections.engine.projection import Projection, same_shape
from coupon_clock.projections.engine.tables import columns_of, in_schema, selected

NAME = "coupon_template"
FOLD_VERSION = 1

TemplateState = Literal["upcoming", "active", "over"]


class TemplateRow(TemplateFields, frozen=True, kw_only=True, gc=False):
    """One row, column by column: the template's fields as they are now, and `position`, that of the event that last
    changed it."""

    reason: EndReason | None = None
    ended_at: datetime | None = None
    version: int
    position: int


def table(name: str) -> Table:
    """The live table, or a shadow of it under another name."""
    table = Table(name, MetaData(), *columns_of(TemplateRow, key=("template_id",)))
    Index(f"{name}_shop_idx", table.c.shop_number, table.c.template_id)
    Index(f"{name}_shop_end_idx", table.c.shop_number, table.c.valid_until, table.c.template_id)
    return table


LIVE = in_schema(table(NAME))

# Read once a statement: the function is volatile, and all rows must be filtered and judged at one time. A scalar, not
# a join: only so does PostgreSQL know that the rows still come in the order of the index.
CLOCK = select(literal_column("{schema}.now_utc()").label("as_of")).cte("clock").prefix_with("MATERIALIZED")
AS_OF = select(CLOCK.c.as_of).scalar_subquery().label("as_of")
QUARANTINED: ColumnElement[bool] = literal_column(
    f"EXISTS (SELECT FROM {{schema}}.quarantine WHERE projection = '{NAME}' AND stream_id = template_id)"
).label("quarantined")


class TemplateView(TemplateRow, frozen=True, kw_only=True):
    """A row as of `as_of`, PostgreSQL's time when it was read. `quarantined`: it is as it was before an event that
    could not be taken in."""

    as_of: datetime
    quarantined: bool

    @property
    def state(self) -> TemplateState:
        if self.ended_at is not None or self.as_of >= self.valid_until:
            return "over"
        return "upcoming" if self.as_of < self.valid_from else "active"

    @property
    def is_usable(self) -> bool:
        return self.state == "active"


# ── fold ─────────────────────────────────────────────────────────────────────────────────────────


def fold(row: TemplateRow | None, envelope: Envelope[Event]) -> TemplateRow:
    """The row after one more event: the same for the projector, a rebuild and a check."""
    event, version, position = envelope.event, envelope.version, envelope.position
    if isinstance(event, Created):
        return TemplateRow(**asdict(event), version=version, position=position)
    assert row is not None, "a stream begins with Created"
    match event:
        case StockIncreased():
            return replace(row, stock=row.stock + event.by, version=version, position=position)
        case ValidityChanged():
            valid_from, valid_until = event.valid_from, event.valid_until
            return replace(row, valid_from=valid_from, valid_until=valid_until, version=version, position=position)
        case Ended():
            return replace(row, reason=event.reason, ended_at=event.ended_at, version=version, position=position)


def view_at(envelopes: Sequence[Envelope[Event]], at: int | datetime) -> TemplateView | None:
    """What a row would have been at a position, when its last event until then was stored, or at a time. None before
    the first event."""
    if isinstance(at, datetime):
        seen = [envelope for envelope in envelopes if envelope.recorded_at <= at]
    else:
        seen = [envelope for envelope in envelopes if envelope.position <= at]
    row = reduce(fold, seen, None)
    if row is None:
        return None
    as_of = utc(at) if isinstance(at, datetime) else seen[-1].recorded_at
    return TemplateView(**asdict(row), as_of=as_of, quarantined=False)


TEMPLATE_ROWS: Projection[TemplateRow] = Projection(
    name=NAME,
    fold_version=FOLD_VERSION,
    table=table,
    row=TemplateRow,
    key=lambda envelope: (envelope.stream_id,),
    fold=fold,
    one_row_a_stream=True,
)


# ── queries ──────────────────────────────────────────────────────────────────────────────────────


class Filters(Struct, frozen=True, kw_only=True):
    """All that are given must hold. `state`: by PostgreSQL's time; `ended`: whether its Ended is recorded;
    `ends_before` and `ends_after`, aware times, bound `valid_until`, both excluded; `discount`: FixedAmount,
    ThresholdAmount, Percentage."""

    name_contains: str | None = None
    goods: str | None = None
    target: str | None = None
    discount: str | None = None
    state: TemplateState | None = None
    ended: bool | None = None
    ends_before: datetime | None = None
    ends_after: datetime | None = None


class Page(Struct, frozen=True):
    """Views in order of their ids, oldest template first; `after`: the cursor of the next page, None at the end."""

    views: list[TemplateView]
    after: UUID | None


def find(connection: Connection[TupleRow], schema: Schema, shop_number: int, template_id: UUID) -> TemplateView | None:
    columns = LIVE.c
    wanted = (columns.shop_number == shop_number) & (columns.template_id == template_id)
    views = viewed(connection, schema, select(LIVE, AS_OF, QUARANTINED).where(wanted))
    return views[0] if views else None


def page(
    connection: Connection[TupleRow], schema: Schema, shop_number: int, filters: Filters, after: UUID | None, limit: int
) -> Page:
    """The arguments are as `page_problems` finds none in."""
    limit = min(limit, arguments.LARGEST_PAGE)
    views = viewed(connection, schema, page_statement(shop_number, filters, after, limit + 1))
    more = len(views) > limit
    return Page(views[:limit], views[limit - 1].template_id if more else None)


def page_problems(shop_number: int, filters: Filters, after: UUID | None, limit: int) -> Problems:
    """Each argument and filter that cannot be asked for."""
    yield from arguments.shop(shop_number)
    yield from list(arguments.of_type("filters", filters, Filters)) or filter_problems(filters)
    yield from arguments.of_type("after", after, UUID) if after is not None else ()
    yield from arguments.limit(limit)


def filter_problems(filters: Filters) -> Problems:
    """Naive times, and words that no row can have: all that would find nothing, or another thing than was meant."""
    for field, value in given(filters).items():
        if wrong_type := list(arguments.of_type(field, value, FILTERS[field][0])):
            yield from wrong_type
        elif field in CHOICES:
            yield from rules.one_of(field, value, CHOICES[field])
        elif isinstance(value, datetime):
            yield from rules.instant(field, value)
        elif isinstance(value, str):
            yield from rules.at_most(field, value, rules.LONGEST_GOODS)


def given(filters: Filters) -> dict[str, Any]:
    """Texts in the form in which they are kept."""
    filled = {field: value for field, value in asdict(filters).items() if value is not None}
    return {field: normalized(value) if isinstance(value, str) else value for field, value in filled.items()}


CHOICES: dict[str, tuple[str, ...]] = {
    "target": rules.TARGETS,
    "discount": tuple(kind.__name__ for kind in get_args(Discount)),
    "state": get_args(TemplateState),
}


def page_statement(shop_number: int, filters: Filters, after: UUID | None, limit: int) -> Select[Any]:
    """Walks the shop's part of one index from the cursor on; the filters are looked at row by row."""
    columns = LIVE.c
    wanted = [columns.shop_number == shop_number]
    wanted += [FILTERS[field][1](value) for field, value in given(filters).items()]
    if after is not None:
        wanted.append(columns.template_id > after)
    return select(LIVE, AS_OF, QUARANTINED).where(*wanted).order_by(columns.template_id).limit(limit)


def in_state(state: TemplateState) -> ColumnElement[bool]:
    is_over = LIVE.c.ended_at.is_not(None) | (LIVE.c.valid_until <= AS_OF)
    match state:
        case "over":
            return is_over
        case "upcoming":
            return ~is_over & (LIVE.c.valid_from > AS_OF)
        case "active":
            return ~is_over & (LIVE.c.valid_from <= AS_OF)


# The type of each filter's value, and the condition that it puts on a row.
FILTERS: dict[str, tuple[type, Callable[[Any], ColumnElement[bool]]]] = {
    "name_contains": (str, lambda text: LIVE.c.name.contains(text, autoescape=True)),
    "goods": (str, lambda goods: LIVE.c.goods == goods),
    "target": (str, lambda target: LIVE.c.target == target),
    "discount": (str, lambda kind: LIVE.c.discount["type"].astext == kind),
    "state": (str, in_state),
    "ended": (bool, lambda ended: LIVE.c.ended_at.is_not(None) if ended else LIVE.c.ended_at.is_(None)),
    "ends_before": (datetime, lambda end: LIVE.c.valid_until < end),
    "ends_after": (datetime, lambda end: LIVE.c.valid_until > end),
}


def viewed(connection: Connection[TupleRow], schema: Schema, statement: Select[Any]) -> list[TemplateView]:
    with same_shape(TEMPLATE_ROWS):
        return [msgspec.convert(row, TemplateView) for row in selected(connection, schema, statement)]
