"""The projector applies the log: rows and checkpoint together, nothing skipped, nothing applied by the wrong code."""

import psycopg
import pytest

from coupon_clock.infrastructure.event_store.checkpoint import CheckpointLost
from coupon_clock.projections.coupon_templates import TEMPLATE_ROWS
from coupon_clock.projections.engine.projection import ReadModelOutdated, ReadModelTooNew
from coupon_clock.projections.engine.projector import Projector, Standing
from coupon_clock.projections.registry import PROJECTIONS
from examples import EVENING, SHOP, a_template, increase
from history import run_sql, value


@pytest.fixture
def projector(app) -> Projector:
    return Projector(app.store, TEMPLATE_ROWS)


def position(database_url: str, name: str = TEMPLATE_ROWS.name) -> int:
    return value(database_url, f"SELECT position FROM coupon_clock.checkpoint WHERE name = '{name}'")


def test_it_is_behind_while_more_is_to_come_and_then_caught_up(app):
    app.execute_many([a_template() for _ in range(5)])
    projector = Projector(app.store, TEMPLATE_ROWS, batch=2)
    assert projector.standing == Standing("standing by")

    states = []
    while projector.run_once():
        states.append(projector.standing.state)

    assert states == ["behind", "behind", "caught up"]


def test_it_is_caught_up_where_there_is_nothing(projector):
    projector.run_once()
    assert projector.standing == Standing("caught up")


def test_of_two_only_one_applies_and_the_other_stands_by(app, projector, database_url):
    projector.run_once()
    other = Projector(app.store, TEMPLATE_ROWS)
    app.execute(a_template())

    assert not other.run_once()
    assert other.standing.state == "standing by"
    assert position(database_url) == 0

    projector.release()
    assert other.run_once()


def test_a_long_gap_blocks_it_and_says_so(app, database_url):
    projector = Projector(app.store, TEMPLATE_ROWS, long_gap_s=0)
    with psycopg.connect(database_url) as writer:
        writer.execute(
            "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) "
            "VALUES (gen_random_uuid(), 1, '', '')"
        )
        app.execute(a_template())
        assert not projector.run_once()
        assert projector.standing.state == "blocked"
        writer.rollback()

    assert projector.run_once()
    assert projector.standing.state == "caught up"


@pytest.mark.parametrize(("fold_version", "error"), [(0, ReadModelOutdated), (2, ReadModelTooNew)])
@pytest.mark.parametrize("projection", PROJECTIONS, ids=lambda projection: projection.name)
def test_code_of_another_fold_version_neither_writes_nor_reads(app, database_url, projection, fold_version, error):
    app.execute(a_template())
    run_sql(
        database_url,
        "UPDATE coupon_clock.checkpoint SET fold_version = %s WHERE name = %s",
        fold_version,
        projection.name,
    )

    with pytest.raises(error, match=f"coupon-clock rebuild {projection.name}"):
        Projector(app.store, projection).run_once()
    with pytest.raises(error):
        app.page(SHOP) if projection is TEMPLATE_ROWS else app.shop_months(SHOP)

    assert position(database_url, projection.name) == 0
    assert value(database_url, f"SELECT count(*) FROM coupon_clock.{projection.name}") == 0


def test_a_table_of_another_shape_is_reported_by_name(app, projector, database_url):
    app.execute(a_template())
    run_sql(database_url, "ALTER TABLE coupon_clock.coupon_template RENAME COLUMN goods TO wares")

    with pytest.raises(ReadModelOutdated, match="run `coupon-clock rebuild coupon_template`"):
        app.page(SHOP)
    with pytest.raises(ReadModelOutdated):
        projector.run_once()

    app.maintenance.rebuild()
    assert len(app.page(SHOP).views) == 1


def test_a_batch_that_began_before_a_swap_writes_nothing(app, projector, database_url):
    template = a_template(stock=10)
    app.execute(template)
    projector.run_once()
    app.maintenance.rebuild()
    app.execute(increase(template.template_id, by=5))

    with pytest.raises(CheckpointLost):
        projector.run_once()
    projector.run_once()

    assert app.find(SHOP, template.template_id).stock == 15


def test_what_is_shown_is_what_the_log_says_after_any_batches(app, database_url):
    template = a_template(stock=10, valid_until=EVENING)
    app.execute_many([template, *(increase(template.template_id, by=1) for _ in range(7))])
    for projection in PROJECTIONS:
        for size in (1, 3, 100):
            one = Projector(app.store, projection, batch=size)
            one.run_once()
            one.release()

    assert app.find(SHOP, template.template_id).stock == 17
    assert list(app.maintenance.verify()) == []
