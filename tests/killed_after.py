"""Runs all loops and dies, as by `kill -9`, the first time that the named step is done: python killed_after.py STEP."""

import os
import signal
import sys
from collections.abc import Callable
from threading import Event
from typing import Any

from coupon_clock.app import Application, Settings
from coupon_clock.deadlines import broker_for
from coupon_clock.infrastructure.event_store.recorder import EventLogRecorder
from coupon_clock.infrastructure.scheduling.alarms import Alarms
from coupon_clock.infrastructure.scheduling.reconciler import Reconciler
from coupon_clock.projections.engine import projector

settings = Settings.load()
broker = type(broker_for(settings))

STEPS: dict[str, list[tuple[Any, str]]] = {
    "claiming": [(Alarms, "claim"), (Alarms, "lease")],
    "publishing": [(broker, "publish")],
    "receiving": [(broker, "receive")],
    "appending the end": [(EventLogRecorder, "end_due")],
    "acknowledging": [(broker, "acknowledge")],
    "reconciling": [(Reconciler, "run_once")],
    "writing rows": [(projector, "save")],
}


def die_after(owner: Any, name: str) -> None:
    step: Callable[..., Any] = getattr(owner, name)

    def dying(*arguments: Any, **named: Any) -> Any:
        done = step(*arguments, **named)
        if done or done is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(owner, name, dying)


if __name__ == "__main__":
    for owner, name in STEPS[sys.argv[1]]:
        die_after(owner, name)
    with Application.open(settings) as app, app.running(sys.argv[2].split(",")):  # type: ignore[arg-type]
        Event().wait()
