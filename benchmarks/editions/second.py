"""The second edition: a schema of its own, alarms that carry their ending, maintenance on `Application.maintenance`."""

from figures import Edition, main

from coupon_clock.app import Application
from coupon_clock.infrastructure.logs import log_to_stderr
from coupon_clock.infrastructure.loop import tune_interpreter

ROWS = "coupon_template"


def rebuild(app: Application) -> float:
    return app.maintenance.rebuild(ROWS).seconds


def verify_rows(app: Application) -> int:
    return sum(1 for _ in app.maintenance.verify_rows(ROWS))


if __name__ == "__main__":
    main(Edition(log_to_stderr, tune_interpreter, "coupon_clock.event", "coupon_clock.alarm", rebuild, verify_rows))
