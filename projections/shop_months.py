"""What happened in each shop in each month: the second projection, and the example of how to add one.

One file: a row, a table, a fold, the queries. docs/projections.md walks through it.
"""

from datetime import UTC, date, timedelta
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from psycopg import Connection
from psycopg.rows import TupleRow
from sqlalchemy import MetaData, Select, Table, select

from coupon_clock.domain import arguments
from coupon_clock.domain.events import Created, Ended, EndReason, Event, StockIncreased, ValidityChanged
from coupon_clock.domain.rules import Problems
from coupon_clock.infrastructure.event_store.store import Envelope
from coupon_clock.infrastructure.postgres.database import Schema
from coupon_clock.projections.engine.projection import Key, Projection, same_shape
from coupon_clock.projections.engine.tables import columns_of, in_schema, selected

NAME = "shop_month"
FOLD_VERSION = 1
MICROSECOND = timedelta(microseconds=1)


class ShopMonth(Struct, frozen=True, kw_only=True, gc=False):
    """`month`: its first day, UTC; an event belongs to the month in which it was recorded. `expired` and `terminated`
    count what ended for that reason. `lateness_sum`, `lateness_max`: from the end to the decision, of what expired, in
    microseconds."""

    shop_number: int
    month: date
    created: int = 0
    expired: int = 0
    terminated: int = 0
    stock_issued: int = 0
    lateness_sum: int = 0
    lateness_max: int = 0
    position: int = 0


def table(name: str) -> Table:
    """The live table, or a shadow of it under another name."""
    return Table(name, MetaData(), *columns_of(ShopMonth, key=("shop_number", "month")))


# ── fold ─────────────────────────────────────────────────────────────────────────────────────────


def key(envelope: Envelope[Event]) -> Key:
    return envelope.event.shop_number, envelope.recorded_at.astimezone(UTC).date().replace(day=1)


def fold(row: ShopMonth | None, envelope: Envelope[Event]) -> ShopMonth:
    """The row after one more event."""
    if row is None:
        shop_number, month = key(envelope)
        row = ShopMonth(shop_number=shop_number, month=month)
    row = replace(row, position=envelope.position)
    match envelope.event:
        case Created(stock=stock):
            return replace(row, created=row.created + 1, stock_issued=row.stock_issued + stock)
        case StockIncreased(by=by):
            return replace(row, stock_issued=row.stock_issued + by)
        case ValidityChanged():
            return row
        case Ended(reason=EndReason.TERMINATED):
            return replace(row, terminated=row.terminated + 1)
        case Ended(ended_at=ended_at):
            late = (envelope.recorded_at - ended_at) // MICROSECOND
            return replace(
                row,
                expired=row.expired + 1,
                lateness_sum=row.lateness_sum + late,
                lateness_max=max(row.lateness_max, late),
            )


SHOP_MONTHS: Projection[ShopMonth] = Projection(
    name=NAME, fold_version=FOLD_VERSION, table=table, row=ShopMonth, key=key, fold=fold, one_row_a_stream=False
)


# ── queries ──────────────────────────────────────────────────────────────────────────────────────

LIVE = in_schema(table(NAME))


class MonthsPage(NamedTuple):
    """Months of one shop, the latest first; `before`: the cursor of the next page, None at the end."""

    months: list[ShopMonth]
    before: date | None


def page(
    connection: Connection[TupleRow], schema: Schema, shop_number: int, before: date | None, limit: int
) -> MonthsPage:
    """The arguments are as `page_problems` finds none in."""
    limit = min(limit, arguments.LARGEST_PAGE)
    with same_shape(SHOP_MONTHS):
        found = selected(connection, schema, page_statement(shop_number, before, limit + 1))
    months = [msgspec.convert(row, ShopMonth) for row in found]
    return MonthsPage(months[:limit], months[limit - 1].month if len(months) > limit else None)


def page_problems(shop_number: int, before: date | None, limit: int) -> Problems:
    """Each argument that cannot be asked for."""
    yield from arguments.shop(shop_number)
    yield from arguments.of_type("before", before, date) if before is not None else ()
    yield from arguments.limit(limit)


def page_statement(shop_number: int, before: date | None, limit: int) -> Select[Any]:
    columns = LIVE.c
    wanted = [columns.shop_number == shop_number]
    if before is not None:
        wanted.append(columns.month < before)
    return select(LIVE).where(*wanted).order_by(columns.month.desc()).limit(limit)
