"""A projection of streams that are no coupon templates, in a schema of its own: the engine and rebuilds serve it."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import pytest
from msgspec import Struct
from sqlalchemy import BigInteger, Column, MetaData, Table, Text, Uuid

from coupon_clock.domain.errors import InvalidArgument
from coupon_clock.infrastructure.event_store.store import Envelope
from coupon_clock.infrastructure.progress import no_progress
from coupon_clock.projections.engine.projection import Projection
from coupon_clock.projections.rebuild.dry_run import dry_run
from coupon_clock.projections.rebuild.rebuild import RebuildOptions, rebuild
from coupon_clock.runtime import Runtime, Settings
from coupon_clock.testing import TestRuntime, given
from examples import MORNING
from history import run_sql, value
from programs import example
from waiting import eventually


class OrderRow(Struct, frozen=True):
    order_id: UUID
    last_event: str
    position: int


def fold(row: OrderRow | None, envelope: Envelope[Any]) -> OrderRow:
    return OrderRow(envelope.stream_id, type(envelope.event).__name__, envelope.position)


def table(name: str) -> Table:
    columns = (Column("order_id", Uuid, primary_key=True), Column("last_event", Text), Column("position", BigInteger))
    return Table(name, MetaData(), *columns)


ORDER_ROWS: Projection[OrderRow] = Projection(
    name="order_row",
    fold_version=1,
    table=table,
    row=OrderRow,
    key=lambda envelope: (envelope.stream_id,),
    fold=fold,
    one_row_a_stream=True,
)
LAST_EVENT = "SELECT string_agg(last_event, ' ') FROM orders.order_row"


@pytest.fixture
def shop() -> ModuleType:
    return example("order_timeout")


@pytest.fixture
def orders(shop: ModuleType, database_url: str) -> Iterator[Runtime[Any, Any, Any]]:
    settings = Settings.load(database_url=database_url, **shop.ITS_OWN)
    Runtime.migrate(settings, [ORDER_ROWS])
    with Runtime.open(settings, shop.ORDERS, shop.Event, [ORDER_ROWS]) as orders:
        yield orders


def test_its_rows_follow_what_is_due(shop, orders, database_url):
    test_runtime = TestRuntime(orders, MORNING)
    given(test_runtime, shop.PlaceOrder(command_id=uuid4(), order_id=uuid4(), amount=1))
    test_runtime.run_due()
    assert value(database_url, LAST_EVENT) == "Placed"

    test_runtime.clock.set(MORNING + shop.PAYMENT_TIME)
    test_runtime.run_due()
    assert value(database_url, LAST_EVENT) == "Cancelled"


def test_they_are_kept_up_to_date_while_it_runs(shop, orders, database_url):
    with orders.running(["projector"]):
        orders.execute(shop.PlaceOrder(command_id=uuid4(), order_id=uuid4(), amount=1))
        eventually(lambda: value(database_url, LAST_EVENT) == "Placed")


def test_they_are_rebuilt(shop, orders, database_url):
    orders.execute(shop.PlaceOrder(command_id=uuid4(), order_id=uuid4(), amount=1))

    assert dry_run(orders.store, ORDER_ROWS, no_progress).rows == 1
    assert rebuild(orders.store, ORDER_ROWS, RebuildOptions(jobs=1)).events == 1

    assert value(database_url, LAST_EVENT) == "Placed"


def test_it_never_takes_over_the_checkpoint_of_a_follower_with_its_name(shop, database_url):
    settings = Settings.load(database_url=database_url, **shop.ITS_OWN)
    Runtime.migrate(settings)
    run_sql(database_url, "INSERT INTO orders.checkpoint (name, kind, position) VALUES ('order_row', 'follower', 7)")

    with pytest.raises(InvalidArgument, match="is the name of a follower of the log already"):
        Runtime.migrate(settings, [ORDER_ROWS])
    assert value(database_url, "SELECT to_regclass('orders.order_row')") is None
