"""Brings a shadow up to the end of the log, as a projector does the live rows."""

from time import sleep

from coupon_clock.infrastructure.postgres.database import fetch_one
from coupon_clock.projections.engine.projector import Projector
from coupon_clock.projections.rebuild.run import Pace, Run

BATCH = 10_000
GAP_PAUSE_S = 0.002

POSITION = "SELECT position FROM {schema}.checkpoint WHERE name = %s"


def catch_up(run: Run) -> int:
    """Applies what the shadow lacks of the log as it ends now; returns how many events. Raises UnreadableEvent,
    CheckpointLost (taken over by another rebuild)."""
    projector = Projector(run.store, run.projection, run.shadow, BATCH)
    pace = Pace(run.options.events_per_s, sleep)
    end, events = run.store.end(), 0
    while True:
        applied = projector.run_once()["followed"]
        run.after_step("batch")
        (position,) = fetch_one(run.connection, run.store.database.sql(POSITION), run.shadow)
        run.progress("catching up", position, max(position, end))
        events += applied
        pace.passed(applied)
        if not applied and position >= end:
            break
        if not applied:
            sleep(GAP_PAUSE_S)
    projector.release()
    run.after_step("catch up")
    return events
