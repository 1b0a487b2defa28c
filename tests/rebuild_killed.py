"""Rebuilds and dies, as by `kill -9`, right after the named step: python rebuild_killed.py STEP PROJECTION."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from coupon_clock.app import Application
from coupon_clock.projections.engine.projector import Projector
from coupon_clock.projections.rebuild import rebuild, replay
from coupon_clock.projections.rebuild.rebuild import Rebuild
from coupon_clock.projections.rebuild.replay import Replay

STEPS: dict[str, tuple[Any, str]] = {
    "preparing": (Rebuild, "prepare"),
    "claiming": (Replay, "_claim"),
    "noting a chunk as done": (Replay, "_write"),
    "writing a chunk": (Replay, "run_once"),
    "replaying": (Rebuild, "replay"),
    "indexing": (Rebuild, "complete"),
    "catching up a batch": (Projector, "run_once"),
    "catching up": (Rebuild, "_catch_up"),
    "swapping": (rebuild, "swap"),
}


INSTEAD = ("noting a chunk as done",)
"""What is done just before the method, which is not done any more."""


def die_after(owner: Any, name: str) -> None:
    step: Callable[..., Any] = getattr(owner, name)

    def dying(*arguments: Any, **named: Any) -> None:
        step(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, dying)


def die_instead_of(owner: Any, name: str) -> None:
    setattr(owner, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))


if __name__ == "__main__":
    replay.EVENTS_A_CHUNK = 10
    die = die_instead_of if sys.argv[1] in INSTEAD else die_after
    die(*STEPS[sys.argv[1]])
    with Application.open() as app:
        app.rebuild(sys.argv[2])
