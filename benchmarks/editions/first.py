"""The first edition: one schema `public`, an event is loaded and decided when it is due, maintenance on Application."""

from figures import Edition, main

from coupon_clock.app import Application
from coupon_clock.infrastructure.loop import be_punctual
from coupon_clock.infrastructure.telemetry import log_to_stderr

ROWS = "coupon_template"


def rebuild(app: Application) -> float:
    return app.rebuild(ROWS).seconds


def verify_rows(app: Application) -> int:
    return sum(1 for _ in app.verify(ROWS))


if __name__ == "__main__":
    main(Edition(log_to_stderr, be_punctual, "coupon_template_events", "alarm", rebuild, verify_rows))
