"""Rebuilds and dies, as by `kill -9`, right after the named step: python rebuild_killed.py STEP PROJECTION."""

import os
import signal
import sys
from typing import get_args

from coupon_clock.app import Application
from coupon_clock.projections.rebuild.rebuild import RebuildOptions, rebuild
from coupon_clock.projections.rebuild.run import Step
from coupon_clock.projections.registry import projection_named

STEPS: tuple[Step, ...] = get_args(Step)

if __name__ == "__main__":

    def die(step: Step) -> None:
        if step == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGKILL)

    with Application.open() as app:
        rebuild(app.store, projection_named(sys.argv[2]), RebuildOptions(events_a_chunk=10), after_step=die)
