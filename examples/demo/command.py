"""Runs the demo. Exit codes: 0 every promise kept, 1 one was broken, 2 it could not run, 130 interrupted."""

import sys
import time
from argparse import ArgumentParser
from datetime import UTC, datetime, timedelta
from pathlib import Path
from signal import SIGINT, SIGTERM, default_int_handler, signal

import psutil
import psycopg
from rich.console import Console, Group

from actions import ARMING_WINDOW, create, run_due, scenario
from coupon_clock import Application, CouponClockError, MemoryBroker, Settings
from environment import alone_in, environment
from observer import observing
from report import broken_promises, summary
from view import shown

GRACE = timedelta(seconds=3)  # how long after the last end the demo waits for templates that did not end

out, err = Console(), Console(stderr=True)


def main() -> None:
    parser = ArgumentParser(description="Forty coupon templates of three shops end on time, live.")
    parser.add_argument("--broker", choices=["rocketmq", "memory"], default="rocketmq", help="RocketMQ, or in-process")
    parser.add_argument("--dir", type=Path, default=Path(".demo"), help="where the servers keep everything")
    options = parser.parse_args()
    signal(SIGTERM, default_int_handler)
    signal(SIGINT, default_int_handler)  # a shell has it ignored by what it starts in the background
    try:
        with alone_in(options.dir), environment(options.dir, options.broker) as settings:
            broken = run(settings)
    except KeyboardInterrupt:
        err.print("Interrupted; what the demo started is stopped.", highlight=False)
        sys.exit(130)
    except (CouponClockError, psycopg.Error) as error:
        err.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    sys.exit(1 if broken else 0)


def run(settings: Settings) -> list[str]:
    """Returns the promises that were broken, in words."""
    memory = MemoryBroker()
    memory.arming_window = ARMING_WINDOW  # it has no setting for it, and its 30 s leave nothing to see
    name, broker = ("RocketMQ", None) if settings.rocketmq_endpoints else ("the in-process broker", memory)
    title = f"Coupon Clock on {name}: messages are sent {ARMING_WINDOW.seconds} s before the end"
    Application.migrate(settings)
    with Application.open(settings) as app:
        with app.running(broker=broker), observing(settings) as seen:
            templates = scenario(datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1))
            create(app, templates)
            first_after = time.time() - psutil.Process().create_time()
            with shown(out, title, templates, seen) as show:
                now, all_shown = datetime.now(UTC), False
                while not all_shown and now <= max(template.ends_at for template in templates) + GRACE:
                    all_shown, now = len(seen.shown_at) == len(templates), datetime.now(UTC)
                    run_due(app, templates, now, seen)
                    show(now)
                    time.sleep(0.1)
        broken = list(broken_promises(app.maintenance.verify_promise(), templates, seen))
        out.print(Group(*summary(app, templates, seen, first_after, broken)), soft_wrap=not out.is_terminal)
    return broken
