"""How the whole stands, read from the database alone: so it also tells of processes that no longer can.

Counts stop at bounds, so that it takes less than a second however large the tables are.
"""

import socket
from collections.abc import Iterator
from datetime import datetime, timedelta
from time import monotonic, sleep
from typing import Any, NamedTuple, TypeVar

from msgspec import MsgspecError, Struct
from psycopg import Connection
from psycopg.rows import TupleRow, class_row

from coupon_clock.domain.events import Ended, EndReason, Event, StoredEvent
from coupon_clock.infrastructure.event_store.store import EventFormat
from coupon_clock.infrastructure.postgres.database import Database, Schema
from coupon_clock.infrastructure.processes import Process, all_processes
from coupon_clock.infrastructure.scheduling.alarms import STUCK, Stuck
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.maintenance import followers
from coupon_clock.maintenance.doctor import OLD_SNAPSHOT
from coupon_clock.maintenance.followers import Follower
from coupon_clock.maintenance.verify.promise import LatenessDistribution

MOST_COUNTED = 100_000
MOST_AHEAD = 300_000
MOST_ENDS = 20_000
ENDS_A_SECOND = 40_000
"""Of one process on two cores (docs/performance.md)."""
SAMPLE_S = 0.3
BROKER_TIMEOUT_S = 1.0
WINDOWS = {"5 minutes": timedelta(minutes=5), "hour": timedelta(hours=1), "day": timedelta(days=1)}
HELD_BY_A_MOMENT = timedelta(seconds=1)

COUNT = "(SELECT count(*) FROM (SELECT FROM {{schema}}.alarm WHERE {} LIMIT %(most)s) AS counted)"
FREE = "armed_at IS NULL AND (leased_until IS NULL OR leased_until <= clock.now)"
ALARMS = f"""
SELECT clock.now AS at,
       (SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = '{{schema}}.alarm'::regclass) AS about,
       {COUNT.format("due_at <= clock.now - %(allowed)s")} AS overdue,
       (SELECT min(due_at) FROM {{schema}}.alarm WHERE due_at <= clock.now - %(allowed)s) AS overdue_since,
       {COUNT.format("due_at BETWEEN clock.now AND clock.now + interval '1 minute'")} AS in_a_minute,
       {COUNT.format("due_at BETWEEN clock.now AND clock.now + interval '1 hour'")} AS in_an_hour,
       {COUNT.format("due_at BETWEEN clock.now AND clock.now + interval '1 day'")} AS in_a_day,
       {COUNT.format(f"due_at BETWEEN clock.now AND clock.now + %(window)s AND {FREE}")} AS unarmed,
       {COUNT.format(f"due_at BETWEEN clock.now AND clock.now + %(lead)s AND {FREE}")} AS unarmed_late
  FROM (SELECT {{schema}}.now_utc() AS now) AS clock
"""
AHEAD = """
SELECT floor(extract(epoch FROM due_at - %(now)s) / 60)::int AS minute, count(*)
  FROM (SELECT due_at
          FROM {schema}.alarm
         WHERE due_at > %(now)s AND due_at <= %(now)s + interval '1 day'
         ORDER BY due_at
         LIMIT %(most)s) AS ahead
 GROUP BY 1
"""
LATEST_ENDS = """
SELECT cause, recorded_at, state
  FROM (SELECT topic, cause, recorded_at, state FROM {schema}.event ORDER BY notification_id DESC LIMIT %s) AS latest
 WHERE topic = 'CouponTemplate.Ended'
"""
QUARANTINED = "SELECT projection, count(*) FROM {schema}.quarantine GROUP BY 1 ORDER BY 1"
REJECTED = """
SELECT left(reason, 80), count(*), max(rejected_at) FROM {schema}.rejected_message GROUP BY 1 ORDER BY 2 DESC LIMIT 5
"""
SERVER = """
SELECT current_setting('transaction_read_only') = 'on' AS is_read_only,
       (SELECT n_dead_tup FROM pg_stat_all_tables WHERE relid = '{schema}.alarm'::regclass) AS dead_alarms,
       (SELECT max(number) FROM {schema}.schema_migration) AS migration
"""

Row = TypeVar("Row")

STORED: EventFormat[Event] = EventFormat(StoredEvent)


class Alarms(NamedTuple):
    """Counts stop at 100,000; `about`: all, as PostgreSQL estimates. `unarmed`: within the arming window;
    `unarmed_late`: within the lead, so that their messages come late or not at all."""

    at: datetime
    about: int
    overdue: int
    overdue_since: datetime | None
    in_a_minute: int
    in_an_hour: int
    in_a_day: int
    unarmed: int
    unarmed_late: int


class Ahead(NamedTuple):
    """`minutes`: ends in each of the next 60. `peak`: the most in one minute of the next day, `peak_in` minutes from
    now; what one process takes for them. Of the first 300,000."""

    minutes: list[int]
    peak: int
    peak_in: int
    drained_in_s: float


class Lag(NamedTuple):
    """`rate`: events a second just now; `left_s`: until it is at the end, at that rate."""

    follower: Follower
    rate: float
    left_s: float | None


class Lateness(NamedTuple):
    """Of the templates that expired in this window, in seconds; `by_reconciler`: their share. Of the last 20,000 events
    at most."""

    window: str
    ended: int
    p50: float
    p99: float
    worst: float
    by_reconciler: float


class RejectedMessages(NamedTuple):
    reason: str
    messages: int
    latest: datetime


class Server(NamedTuple):
    is_read_only: bool
    dead_alarms: int
    migration: int


class Status(Struct, frozen=True):
    """All of it; `broker`: why it cannot be reached, None where it can, or where there is none."""

    alarms: Alarms
    stuck: Stuck
    ahead: Ahead
    processes: list[Process]
    lags: list[Lag]
    quarantined: dict[str, int]
    rejected: list[RejectedMessages]
    lateness: list[Lateness]
    broker: str | None
    snapshot: tuple[str, datetime | None] | None
    server: Server


def read_status(database: Database) -> Status:
    """Raises DatabaseUnavailable."""
    settings, schema = database.settings, database.schema
    allowed = 2 * settings.reconciled_within
    with database.connection() as connection:
        alarms = one(connection, schema, Alarms, ALARMS, limits(settings, allowed))
        return Status(
            alarms=alarms,
            stuck=one(connection, schema, Stuck, STUCK),
            ahead=ahead(connection, schema, alarms.at),
            processes=all_processes(connection, schema),
            lags=lags(connection, schema),
            quarantined=dict(connection.execute(schema.sql(QUARANTINED))),
            rejected=[RejectedMessages(*row) for row in connection.execute(schema.sql(REJECTED))],
            lateness=list(lateness(connection, schema, alarms.at)),
            broker=broker_problem(settings),
            snapshot=connection.execute(OLD_SNAPSHOT, (HELD_BY_A_MOMENT,)).fetchone(),
            server=one(connection, schema, Server, SERVER),
        )


def limits(settings: Settings, allowed: timedelta) -> dict[str, object]:
    window, lead = settings.arming_window_time, settings.lead_time
    return {"most": MOST_COUNTED, "allowed": allowed, "window": window, "lead": lead}


def one(
    connection: Connection[TupleRow], schema: Schema, kind: type[Row], statement: str, parameters: Any = None
) -> Row:
    """The one row of a statement that always has one."""
    with connection.cursor(row_factory=class_row(kind)) as cursor:
        row = cursor.execute(schema.sql(statement), parameters).fetchone()
    assert row is not None
    return row


def ahead(connection: Connection[TupleRow], schema: Schema, now: datetime) -> Ahead:
    counted: dict[int, int] = dict(connection.execute(schema.sql(AHEAD), {"now": now, "most": MOST_AHEAD}).fetchall())
    peak_in, peak = max(counted.items(), key=lambda minute: minute[1], default=(0, 0))
    return Ahead([counted.get(minute, 0) for minute in range(60)], peak, peak_in, round(peak / ENDS_A_SECOND, 1))


def lags(connection: Connection[TupleRow], schema: Schema) -> list[Lag]:
    """Looks twice where one is behind."""
    first = followers.all_of(connection, schema)
    if not any(follower.behind for follower in first):
        return [Lag(follower, 0.0, None) for follower in first]
    positions, looked_at = {follower.name: follower.position for follower in first}, monotonic()
    sleep(SAMPLE_S)
    found = []
    for follower in followers.all_of(connection, schema):
        rate = (follower.position - positions.get(follower.name, follower.position)) / (monotonic() - looked_at)
        found.append(Lag(follower, round(rate, 1), round(follower.behind / rate, 1) if rate > 0 else None))
    return found


def lateness(connection: Connection[TupleRow], schema: Schema, now: datetime) -> Iterator[Lateness]:
    ends = [
        (recorded_at, cause, recorded_at - event.ended_at)
        for cause, recorded_at, state in connection.execute(schema.sql(LATEST_ENDS), (MOST_ENDS,))
        if (event := expired(state))
    ]
    for window, length in WINDOWS.items():
        distribution, by_reconciler = LatenessDistribution(), 0
        for recorded_at, cause, late in ends:
            if recorded_at > now - length:
                distribution.add(late)
                by_reconciler += cause == "reconciler"
        yield Lateness(
            window,
            distribution.count,
            distribution.quantile(0.5),
            distribution.quantile(0.99),
            distribution.worst.total_seconds(),
            round(by_reconciler / distribution.count, 4) if distribution.count else 0.0,
        )


def expired(state: bytes) -> Ended | None:
    """None for what ended otherwise, and for what cannot be read."""
    try:
        event = STORED.decode(state)
    except (MsgspecError, UnicodeDecodeError):
        return None
    return event if isinstance(event, Ended) and event.reason is EndReason.EXPIRED else None


def broker_problem(settings: Settings) -> str | None:
    """Whether one of the endpoints takes a connection; `doctor` tries what is needed of it."""
    problems = []
    for endpoint in filter(None, settings.rocketmq_endpoints.split(";")):
        host, _, port = endpoint.rpartition(":")
        try:
            socket.create_connection((host, int(port)), BROKER_TIMEOUT_S).close()
        except OSError as error:
            problems.append(f"{endpoint}: {error}")
        else:
            return None
    return "; ".join(problems) or None
