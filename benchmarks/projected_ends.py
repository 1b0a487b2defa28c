"""How fast the projectors follow when very many templates have ended, and no loop runs beside them.

The reference is the rate at which these ends were stored, in the same run: a projector that is much slower would fall
behind for good.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
from measure import Figure, application, at_least_times, create, say, seconds, sleep_until

from coupon_clock.projections.engine.projector import Projector

CREATED_PER_S = 3_000
"""Fewer than are created in a second, so that all are there before the instant."""


def projected_ends(server_url: str, ends: int) -> Iterator[Figure]:
    with application(server_url) as app:
        say(f"creating {ends:,} templates, and their rows")
        instant = datetime.now(UTC) + timedelta(seconds=2 + ends / CREATED_PER_S)
        create(app, [instant] * ends)
        projectors = {each.name: Projector(app.store, each) for each in app.runtime.projections}
        for projector in projectors.values():
            catch_up(projector)
        with psycopg.connect(app.settings.database(), autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
        sleep_until(instant)
        say(f"ending {ends:,} templates")
        stored = ends / seconds(lambda: app.runtime.deadlines.handle_due([], "reconciler"))
        assert app.end_of_log() == 2 * ends
        for name, projector in projectors.items():
            say(f"projecting {ends:,} ends: {name}")
            projected = ends / seconds(lambda projector=projector: catch_up(projector))  # type: ignore[misc]
            yield at_least_times(f"{ends:,} ends projected, {name}", projected, "events/s", stored, 0.5)


def catch_up(projector: Projector) -> None:
    while projector.run_once():
        pass
    assert projector.standing.state == "caught up", projector.standing
