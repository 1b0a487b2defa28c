"""For users' own tests: a manual clock, an application on a throw-away database, and given / when / then.

with throw_away_database(server_url) as url, open_test_application(url, datetime(2026, 1, 1, tzinfo=UTC)) as app:
    given(app, CreateCouponTemplate(…))
    app.clock.advance(days=90)
    app.run_due()
    then(app, Ended(shop_number, EndReason.EXPIRED, ended_at))

The same for streams of one's own with `TestRuntime`, for aggregates of the eventsourcing library with `TestDeadlines`,
and for a decider alone with `DeciderSpec`, which needs no PostgreSQL: `from coupon_clock.testing.decider_spec import
DeciderSpec` and `coupon_clock.testing.given_when_then`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coupon_clock.testing.application import (
        TestApplication,
        TestDeadlines,
        TestRuntime,
        open_test_application,
        run_due,
    )
    from coupon_clock.testing.clock import ManualClock
    from coupon_clock.testing.databases import in_database, throw_away_database
    from coupon_clock.testing.decider_spec import DeciderSpec
    from coupon_clock.testing.given_when_then import given, then, then_nothing, then_refused, when

__all__ = [
    "DeciderSpec",
    "ManualClock",
    "TestApplication",
    "TestDeadlines",
    "TestRuntime",
    "given",
    "in_database",
    "open_test_application",
    "run_due",
    "then",
    "then_nothing",
    "then_refused",
    "throw_away_database",
    "when",
]

MODULES = {
    "application": ("TestApplication", "TestDeadlines", "TestRuntime", "open_test_application", "run_due"),
    "clock": ("ManualClock",),
    "databases": ("in_database", "throw_away_database"),
    "decider_spec": ("DeciderSpec",),
    "given_when_then": ("given", "then", "then_nothing", "then_refused", "when"),
}


def __getattr__(name: str) -> Any:
    """Loads a name when it is first asked for, so that a decider can be tested without PostgreSQL's client."""
    for module, names in MODULES.items():
        if name in names:
            return getattr(import_module(f"coupon_clock.testing.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
