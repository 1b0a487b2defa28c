"""Metrics and health over HTTP, and the alert rules on them: each kind of trouble makes its condition true."""

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest

from alerts import CONDITIONS, RULES, asked, firing
from coupon_clock.infrastructure.loop import Ticks
from coupon_clock.infrastructure.messaging.broker import Delivery
from coupon_clock.infrastructure.processes import Heartbeat
from coupon_clock.maintenance import exporter
from coupon_clock.maintenance.exporter import PortUnusable, serving
from examples import MORNING, NOON, a_template

ALL_ROLES = ["relay", "consumer", "reconciler", "projector"]


@pytest.fixture
def exported(app, monkeypatch) -> Iterator[Callable[[], set[str]]]:
    """What fires now."""
    monkeypatch.setattr(exporter, "KEPT_S", -1.0)
    Heartbeat(app.database, ALL_ROLES, Ticks()).run_once()
    with serving(app.runtime.deadlines, 0) as port:
        yield lambda: firing(asked(port, "/metrics")[1])


def sql(app, statement: str, *parameters: object) -> None:
    with app.database.connection() as connection:
        connection.execute(statement, parameters)


def overdue(app) -> None:
    app.execute(a_template())
    app.run_due()
    app.clock.set(NOON + timedelta(minutes=1))


def ends_soon(app) -> None:
    app.execute(a_template())
    app.clock.set(NOON - timedelta(seconds=5))


def by_the_reconciler(app) -> None:
    app.execute(a_template())
    app.clock.set(NOON)
    app.runtime.deadlines.handle_due([], "reconciler")
    app.run_due()


def behind(app) -> None:
    app.execute(a_template())
    app.clock.advance(minutes=5)


TROUBLE: dict[str, Callable[..., None]] = {
    "CouponClockTemplatesOverdue": overdue,
    "CouponClockStreamsStuck": lambda app: (
        overdue(app),
        sql(app, "UPDATE coupon_clock.alarm SET stuck_since = %s, stuck_until = %s, stuck_by = 'x'", NOON, NOON),
    ),
    "CouponClockNoReconciler": lambda app: sql(app, "UPDATE coupon_clock.process SET roles = '{relay}'"),
    "CouponClockNoRelay": lambda app: sql(app, "DELETE FROM coupon_clock.process"),
    "CouponClockNoConsumer": lambda app: sql(
        app, "UPDATE coupon_clock.process SET heartbeat_at = heartbeat_at - interval '1 minute'"
    ),
    "CouponClockNoProjector": lambda app: sql(app, "DELETE FROM coupon_clock.process"),
    "CouponClockProcessHangs": lambda app: sql(app, """UPDATE coupon_clock.process SET loops = '{"relay": 99}'"""),
    "CouponClockUnarmed": ends_soon,
    "CouponClockReconcilerDoesTheWork": by_the_reconciler,
    "CouponClockFollowerStopped": lambda app: sql(
        app, "UPDATE coupon_clock.checkpoint SET stopped_by = 'an error', stopped_at = now()"
    ),
    "CouponClockFollowerFarBehind": behind,
    "CouponClockQuarantine": lambda app: sql(
        app, "INSERT INTO coupon_clock.quarantine VALUES ('coupon_template', %s, 1, 1, 'x')", uuid4()
    ),
    "CouponClockRejectedMessages": lambda app: app.runtime.deadlines.rejected.add([(Delivery("1", b"?", None), "x")]),
    "CouponClockBrokerAway": lambda app: setattr(
        app.database, "settings", app.settings.model_copy(update={"rocketmq_endpoints": "127.0.0.1:1"})
    ),
    "CouponClockDatabaseAway": lambda app: app.database.close(),
    "CouponClockBurstAhead": lambda app: sql(
        app,
        "INSERT INTO coupon_clock.alarm (stream_id, due_at) "
        "SELECT gen_random_uuid(), %s FROM generate_series(1, 100001)",
        NOON,
    ),
}
"""What makes each fire. A read-only server and an old snapshot have tests of their own."""


@pytest.mark.parametrize("alert", TROUBLE)
def test_trouble_of_each_kind_makes_its_alert_fire(app, exported, alert):
    app.run_due()
    assert alert not in exported()
    app.clock.set(MORNING)
    TROUBLE[alert](app)
    assert alert in exported()


def test_an_old_transaction_makes_its_alert_fire(app, exported, monkeypatch):
    monkeypatch.setitem(CONDITIONS, "CouponClockOldSnapshot", ("coupon_clock_snapshot_seconds", "", ">", 0.0))
    app.clock.set(MORNING.replace(year=2999))
    with app.database.connect() as other, other.transaction():
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT pg_sleep(1.1) FROM coupon_clock.event LIMIT 1")
        other.execute("SELECT pg_sleep(1.1)")
        assert "CouponClockOldSnapshot" in exported()


def test_every_rule_is_a_plain_comparison_of_a_metric_that_is_there(app, exported):
    assert len(CONDITIONS) == RULES.count("- alert:")
    assert CONDITIONS.keys() - TROUBLE.keys() == {"CouponClockReadOnly", "CouponClockOldSnapshot"}


# ── health ───────────────────────────────────────────────────────────────────────────────────────


def test_live_means_that_loops_get_on_and_ready_that_postgresql_takes_writes(app, monkeypatch):
    with serving(app.runtime.deadlines, 0) as port:
        assert asked(port, "/livez")[0] == asked(port, "/readyz")[0] == 200
        app.runtime.deadlines.ticks.began("relay")
        monkeypatch.setattr(exporter, "HUNG_AFTER_S", -1.0)
        status, says = asked(port, "/livez")
        assert (status, "relay" in says) == (503, True)
        app.database.close()
        assert asked(port, "/readyz")[0] == 503


def test_without_a_database_a_process_is_live_and_not_ready(app):
    with serving(app.runtime.deadlines, 0) as port:
        app.database.close()
        assert asked(port, "/livez")[0] == 200
        assert asked(port, "/readyz")[0] == 503
        assert "coupon_clock_database_up 0.0" in asked(port, "/metrics")[1]


def test_a_server_that_takes_no_writes_is_not_ready(app, exported):
    with app.database.connection() as connection:
        ((database,),) = connection.execute("SELECT current_database()")
    sql(app, f'ALTER DATABASE "{database}" SET default_transaction_read_only TO on')
    app.database.close()
    with type(app).open(app.settings) as other, serving(other.runtime.deadlines, 0) as port:
        assert "takes no writes" in asked(port, "/readyz")[1]
        assert "CouponClockReadOnly" in firing(asked(port, "/metrics")[1])


def test_openmetrics_is_spoken_and_other_paths_are_told_what_there_is(app):
    with serving(app.runtime.deadlines, 0) as port:
        request = Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": "application/openmetrics-text"})
        with urlopen(request) as answer:
            text = answer.read().decode()
        assert text.count("# EOF") == 1
        assert "coupon_clock_lateness_seconds" in text
        assert asked(port, "/") == (404, "/metrics, /livez, /readyz\n")


def test_each_stage_of_an_ending_is_timed(app):
    overdue(app)
    app.run_due()
    with serving(app.runtime.deadlines, 0) as port:
        text = asked(port, "/metrics")[1]
    for stage in ("armed", "delivered", "projected"):
        assert re.search(rf'coupon_clock_stage_seconds_count\{{stage="{stage}"\}} [1-9]', text)


def test_a_port_that_is_taken_is_one_sentence(app):
    with (
        serving(app.runtime.deadlines, 0) as port,
        pytest.raises(PortUnusable, match="--port"),
        serving(app.runtime.deadlines, port),
    ):
        pass
