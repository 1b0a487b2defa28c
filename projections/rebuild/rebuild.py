"""Makes a projection anew beside the live one and swaps it in, while commands, queries and projectors run on.

Nothing of the live one changes before the swap, and whatever is interrupted can be gone on with (docs/projections.md).
"""

from collections.abc import Callable
from time import monotonic
from typing import Any

from msgspec import Struct

from coupon_clock.infrastructure.event_store.migrations import taken_names_refused
from coupon_clock.infrastructure.event_store.store import EventStore
from coupon_clock.infrastructure.logs import Log
from coupon_clock.infrastructure.postgres.errors import translate_errors
from coupon_clock.infrastructure.progress import Progress, no_progress
from coupon_clock.projections.engine.projection import Projection
from coupon_clock.projections.rebuild.catch_up import catch_up
from coupon_clock.projections.rebuild.foreign_objects import ForeignObjects
from coupon_clock.projections.rebuild.go_live import SwapBlocked, go_live
from coupon_clock.projections.rebuild.merge import RowsHidden
from coupon_clock.projections.rebuild.plan import ShadowOfOtherFold, plan
from coupon_clock.projections.rebuild.replay import index
from coupon_clock.projections.rebuild.run import (
    NO_OPTIONS,
    RebuildOptions,
    RebuildRunning,
    Step,
    nothing_after,
    only_run,
)
from coupon_clock.projections.rebuild.swap import OldTableInUse, clear_away, refuse_foreign
from coupon_clock.projections.rebuild.workers import replay_together, workers_for

__all__ = [
    "ForeignObjects",
    "OldTableInUse",
    "RebuildOptions",
    "RebuildRunning",
    "Rebuilt",
    "RowsHidden",
    "ShadowOfOtherFold",
    "SwapBlocked",
    "rebuild",
]

log = Log(__name__)


class Rebuilt(Struct, frozen=True):
    """`position`: up to where the rows went when they became live; `events` were folded by this run in `seconds`."""

    projection: str
    position: int
    events: int
    seconds: float


def rebuild(
    store: EventStore[Any],
    projection: Projection[Any],
    options: RebuildOptions = NO_OPTIONS,
    progress: Progress = no_progress,
    after_step: Callable[[Step], object] = nothing_after,
) -> Rebuilt:
    """Returns once the new rows are live. `after_step`: called each time that a step is done (Run).

    Raises RebuildRunning, ShadowTakenOver, ShadowOfOtherFold, SwapBlocked, OldTableInUse (of the rebuild before),
    ForeignTable, UnreadableEvent, DatabaseUnavailable; the live rows are then as they were.
    """
    started, events, position = monotonic(), 0, None
    with (
        translate_errors(),
        taken_names_refused(store.database.schema),
        only_run(store, projection, options, progress, after_step) as run,
    ):
        refuse_foreign(run)
        clear_away(run, keep=False)  # what the rebuild before left
        with workers_for(run) as workers:
            next_step, build = plan(run)  # 1. up to which position, in which chunks
            after_step("plan")
            if next_step == "replay":
                replay_together(run, workers)  # 2. the chunks, on all cores
                events += index(run, build)  # 3. key, indexes, statistics
        give_up_at = monotonic() + options.swap_patience_s
        while position is None:
            events += catch_up(run)  # 4. what was stored since
            position = go_live(run, build, give_up_at)  # 5. live
        try:
            clear_away(run, options.keep_old)  # 6. the old rows
        except OldTableInUse as error:
            log.warning("live, but the old table stays", action="rebuild", why=error)
    return Rebuilt(projection.name, position, events, monotonic() - started)
