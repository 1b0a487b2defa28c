"""Rows go into PostgreSQL in two ways, and come out of both alike."""

import pytest

from coupon_clock.infrastructure.event_store.bulk_reader import in_position_order
from coupon_clock.projections.engine.fold import fold_by_key
from coupon_clock.projections.engine.tables import copy_in, create_bare
from coupon_clock.projections.registry import PROJECTIONS
from history import given_a_history, rows


@pytest.mark.parametrize("projection", PROJECTIONS, ids=lambda projection: projection.name)
def test_rows_that_are_copied_in_are_those_that_the_projector_saved(app, database_url, projection):
    given_a_history(app)
    with app.database.connect() as connection:
        with in_position_order(connection, app.store, app.store.end()) as envelopes:
            made = fold_by_key(projection, envelopes).rows
        create_bare(connection, app.database.schema, projection.table("copied"))
        copy_in(connection, app.database.schema, projection, "copied", made.values())

    assert rows(database_url, "copied") == rows(database_url, projection.name)
