"""Looks at all that Coupon Clock stands on, and says in one sentence each what is wrong and how to fix it.

Changes nothing, but for one message to RocketMQ that ends no template: only sending shows what a broker takes. What is
appended is rolled back.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import NamedTuple
from uuid import uuid4

import psycopg
from psycopg.rows import TupleRow

from coupon_clock.deadlines import ROLES
from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.event_store import migrations
from coupon_clock.infrastructure.messaging.messages import ExpiryDue, to_wire
from coupon_clock.infrastructure.messaging.rocketmq.access import Access
from coupon_clock.infrastructure.messaging.rocketmq.connection import Connection
from coupon_clock.infrastructure.messaging.rocketmq.errors import DelayAboveCap, DelayRefused
from coupon_clock.infrastructure.messaging.rocketmq.library import require_library
from coupon_clock.infrastructure.messaging.rocketmq.requests import Outgoing
from coupon_clock.infrastructure.postgres.connection import connect
from coupon_clock.infrastructure.postgres.database import Schema, fetch_one
from coupon_clock.infrastructure.postgres.errors import (
    ISOLATED,
    READ_ONLY,
    UnsuitableTransactions,
    first_line,
    translate_errors,
)
from coupon_clock.infrastructure.processes import all_processes, roles_run
from coupon_clock.infrastructure.scheduling.alarms import STUCK, Stuck
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.maintenance import followers
from coupon_clock.projections.engine import quarantine

MOST_SKEW = timedelta(seconds=1)
ARMING_S = 1.0
"""How long a relay may take with an alarm that has just been made."""

APPEND = """
SELECT * FROM {schema}.append_events(
    ARRAY[%(id)s::uuid], ARRAY[%(version)s::bigint], ARRAY[%(topic)s], ARRAY[%(state)s::bytea], ARRAY[%(id)s::uuid],
    ARRAY['command'], ARRAY[NULL::text], ARRAY[%(id)s::uuid], ARRAY['2999-01-01Z'::timestamptz],
    ARRAY[%(version)s::bigint], ARRAY[NULL::text], ARRAY[NULL::bytea], NULL, NULL)
"""
BY_DEFAULT = "SELECT current_setting('transaction_read_only') = 'on', current_setting('transaction_isolation')"
OVERDUE = """
SELECT count(*), min(due_at)
  FROM {schema}.alarm
 WHERE due_at <= (SELECT {schema}.now_utc() - %s)
"""
UNARMED = """
SELECT count(*)
  FROM {schema}.alarm
 WHERE armed_at IS NULL
   AND due_at BETWEEN (SELECT {schema}.now_utc()) AND (SELECT {schema}.now_utc() + %s)
   AND (leased_until IS NULL OR leased_until <= {schema}.now_utc())
"""
OLD_SNAPSHOT = """
SELECT holder, since
  FROM (SELECT format('session %%s of %%s, %%s', pid, usename, coalesce(nullif(application_name, ''), 'unnamed'))
                   AS holder,
               xact_start AS since
          FROM pg_stat_activity
         WHERE backend_xmin IS NOT NULL
           -- A parallel worker has no time of its own, nor has a session with track_activities off.
           AND (xact_start IS NOT NULL OR backend_type = 'walsender')
           AND coalesce(datname, current_database()) = current_database()
         UNION ALL
        SELECT format('prepared transaction %%s of %%s', gid, owner), prepared
          FROM pg_prepared_xacts
         WHERE database = current_database()
         UNION ALL
        SELECT format('replication slot %%s, which nobody reads', slot_name), NULL
          FROM pg_replication_slots
         WHERE xmin IS NOT NULL AND NOT active) AS held
 WHERE since IS NULL OR since < clock_timestamp() - %s
 ORDER BY since NULLS FIRST
 LIMIT 1
"""
OLDEST_SNAPSHOT = timedelta(minutes=1)


class Diagnosis(NamedTuple):
    """`says`: what was found, or what is wrong and the command that fixes it."""

    part: str
    ok: bool
    says: str


@dataclass(eq=False)
class ClocksApart(CouponClockError):
    """This host's clock is {seconds:.1f} s {where} PostgreSQL's, whose time decides: nothing ends wrongly, but logs mislead and RocketMQ, if its clock is as wrong, delivers at the wrong time. Fix it with: chronyc makestep"""  # noqa: E501

    seconds: float
    where: str


@dataclass(eq=False)
class AppendRefused(CouponClockError):
    """PostgreSQL refuses what an append stores ({reason}): correct what was changed in the schema."""

    reason: str


@dataclass(eq=False)
class RolesMissing(CouponClockError):
    """No process runs the {roles}: start one with `coupon-clock run {options}`, or `app.running()` in an application; without `--role` it runs all."""  # noqa: E501

    roles: str
    options: str


@dataclass(eq=False)
class AlarmsOverdue(CouponClockError):
    """{count} templates should have been ended already, the first at {since:%Y-%m-%dT%H:%M:%SZ}: no reconciler runs, or it fails and its log says why. Fix it with: coupon-clock run --role reconciler"""  # noqa: E501

    count: int
    since: datetime


@dataclass(eq=False)
class StreamsStuck(CouponClockError):
    """{count} templates are due and cannot be ended, the first since {since:%Y-%m-%dT%H:%M:%SZ}: {reason} Correct what it names; they are tried again each minute at the latest."""  # noqa: E501

    count: int
    since: datetime
    reason: str


@dataclass(eq=False)
class AlarmsUnarmed(CouponClockError):
    """{count} templates end within {lead:g} s and no broker has their messages: they will be ended by the reconciler, up to two seconds late. Fix it with: coupon-clock run --role relay"""  # noqa: E501

    count: int
    lead: float


@dataclass(eq=False)
class FollowersStopped(CouponClockError):
    """Some do not go on ({names}). See why, and what can be done, with: coupon-clock followers list"""

    names: str


@dataclass(eq=False)
class StreamsQuarantined(CouponClockError):
    """{count} streams have events that a projection could not take in ({projections}): see why with `coupon-clock quarantine list`; once code is installed that can, their rows are made anew, and a projection that gathers streams needs `coupon-clock rebuild NAME`."""  # noqa: E501

    count: int
    projections: str


@dataclass(eq=False)
class OldSnapshot(CouponClockError):
    """A transaction has been open since {since} ({holder}), so VACUUM cannot remove what came and went meanwhile, and looks for what is due become slow. End it; set idle_in_transaction_session_timeout for its role."""  # noqa: E501

    holder: str
    since: str


def examine(settings: Settings, oldest_snapshot: timedelta = OLDEST_SNAPSHOT) -> Iterator[Diagnosis]:
    """Yields a diagnosis of each part; what depends on a broken one is left out."""
    yield from _examine_postgresql(settings, oldest_snapshot)
    yield from _examine_rocketmq(settings)


def _examine_postgresql(settings: Settings, oldest_snapshot: timedelta) -> Iterator[Diagnosis]:
    try:
        settings.database()
        connection = connect(settings)
    except CouponClockError as error:
        yield Diagnosis("postgresql", False, str(error))
        return
    with connection:
        log = _diagnosis("log", lambda: _log(connection, settings))
        yield log
        if log.ok:
            yield _diagnosis("append", lambda: _append(connection, settings))
            yield _diagnosis("clock", lambda: _clock(connection, settings))
            yield _diagnosis("processes", lambda: _processes(connection, settings))
            yield _diagnosis("reconciler", lambda: _reconcile(connection, settings))
            yield _diagnosis("relay", lambda: _relay(connection, settings))
            yield _diagnosis("followers", lambda: _followers(connection, settings))
            yield _diagnosis("quarantine", lambda: _quarantine(connection, settings))
            yield _diagnosis("snapshots", lambda: _snapshots(connection, oldest_snapshot))


def _diagnosis(part: str, look: Callable[[], str]) -> Diagnosis:
    """Returns what `look` found. `look` returns what is fine, or raises what is not."""
    try:
        with translate_errors():
            return Diagnosis(part, True, look())
    except CouponClockError as error:
        return Diagnosis(part, False, str(error))


def _log(connection: psycopg.Connection[TupleRow], settings: Settings) -> str:
    migrations.check(connection, Schema(settings.database_schema))
    version = connection.info.parameter_status("server_version")
    return f"PostgreSQL {version}, a primary, with all {len(migrations.MIGRATIONS)} migrations and a log that is whole"


def _append(connection: psycopg.Connection[TupleRow], settings: Settings) -> str:
    """Twice, by a prepared statement, so that a pooler which keeps none is found too. The product does it in a single
    call, whose transaction is what the role or the database has by default."""
    is_read_only, isolation = fetch_one(connection, BY_DEFAULT)
    if is_read_only:
        raise UnsuitableTransactions(f"they are read-only by default: {READ_ONLY}")
    if isolation != "read committed":
        raise UnsuitableTransactions(f"they are {isolation} by default: {ISOLATED}")
    schema, given = Schema(settings.database_schema), {"id": uuid4(), "topic": "Doctor.Looked", "state": b"{}"}
    try:
        with connection.transaction(force_rollback=True):
            for version in (1, 2):
                connection.execute(schema.sql(APPEND), given | {"version": version}, prepare=True)
    except psycopg.IntegrityError as error:
        raise AppendRefused(first_line(error)) from error
    return "an append and its alarm would be stored; both were rolled back"


def _processes(connection: psycopg.Connection[TupleRow], settings: Settings) -> str:
    processes = all_processes(connection, Schema(settings.database_schema))
    running = roles_run(processes)
    if missing := [role for role in ROLES if not running[role]]:
        raise RolesMissing(", ".join(missing), " ".join(f"--role {role}" for role in missing))
    return f"each role is run by one of {sum(not process.is_dead for process in processes)} processes"


def _clock(connection: psycopg.Connection[TupleRow], settings: Settings) -> str:
    before = datetime.now(UTC)
    (server,) = fetch_one(connection, Schema(settings.database_schema).sql("SELECT {schema}.now_utc()"))
    skew = before + (datetime.now(UTC) - before) / 2 - server
    if abs(skew) > MOST_SKEW:
        raise ClocksApart(abs(skew).total_seconds(), "ahead of" if skew > timedelta() else "behind")
    return f"this host and PostgreSQL agree on the time, to {1_000 * abs(skew).total_seconds():.0f} ms"


def _reconcile(connection: psycopg.Connection[TupleRow], settings: Settings) -> str:
    """Twice its usual time is allowed, so that a busy reconciler is no finding."""
    allowed = 2 * settings.reconciled_within
    schema = Schema(settings.database_schema)
    stuck = Stuck(*fetch_one(connection, schema.sql(STUCK)))
    if stuck.since:
        raise StreamsStuck(stuck.streams, stuck.since, stuck.reason or "")
    count, since = fetch_one(connection, schema.sql(OVERDUE), allowed)
    if count:
        raise AlarmsOverdue(count, since)
    return "nothing is overdue"


def _relay(connection: psycopg.Connection[TupleRow], settings: Settings) -> str:
    """Looks again after a moment: an alarm may have been made just now."""
    if _unarmed(connection, settings):
        Event().wait(ARMING_S)
    if count := _unarmed(connection, settings):
        raise AlarmsUnarmed(count, settings.lead)
    return "all that ends soon is with a broker"


def _followers(connection: psycopg.Connection[TupleRow], settings: Settings) -> str:
    found = followers.all_of(connection, Schema(settings.database_schema))
    if stopped := [follower.name for follower in found if follower.is_stopped]:
        raise FollowersStopped(", ".join(stopped))
    return f"none of {len(found)} projections and followers is stopped"


def _quarantine(connection: psycopg.Connection[TupleRow], settings: Settings) -> str:
    if found := quarantine.listed(connection, Schema(settings.database_schema), limit=1_000):
        raise StreamsQuarantined(len(found), ", ".join(sorted({each.projection for each in found})))
    return "every projection has taken in all events up to where it is"


def _snapshots(connection: psycopg.Connection[TupleRow], oldest: timedelta) -> str:
    if found := connection.execute(OLD_SNAPSHOT, (oldest,)).fetchone():
        holder, since = found
        raise OldSnapshot(holder, "long ago" if since is None else f"{since:%Y-%m-%dT%H:%M:%SZ}")
    return "no transaction keeps VACUUM from its work"


def _unarmed(connection: psycopg.Connection[TupleRow], settings: Settings) -> int:
    (count,) = fetch_one(connection, Schema(settings.database_schema).sql(UNARMED), settings.lead_time)
    return int(count)


def _examine_rocketmq(settings: Settings) -> Iterator[Diagnosis]:
    if not settings.rocketmq_endpoints:
        yield Diagnosis("broker", True, "the in-process one: COUPON_CLOCK_ROCKETMQ_ENDPOINTS is not set")
        return
    yield _diagnosis("topic", lambda: _topic(settings))
    yield _diagnosis("group", lambda: _group(settings))


def _topic(settings: Settings) -> str:
    """Sends a message as far ahead as alarms are sent, about no template, and due when nobody would hold it: whoever
    receives it acknowledges it, and that is all."""
    deliver_at = datetime.now(UTC) + settings.arming_window_time
    body = to_wire(ExpiryDue(uuid4(), datetime.max.replace(tzinfo=UTC)))
    with _connected(settings, Connection.for_sending) as connection:
        (failure,) = connection.send([Outgoing("doctor", body, int(deliver_at.timestamp()))])
    if isinstance(failure, DelayRefused):
        raise DelayAboveCap(settings.arming_window_time, settings.arming_window_time / 2)
    if failure:
        raise failure
    return f"{settings.rocketmq_topic} takes messages {settings.arming_window_time} ahead"


def _group(settings: Settings) -> str:
    """Receives nothing: what is received is away from others for a while. Who may not receive is refused already when
    the connection says what it would receive, and as which group."""
    with _connected(settings, Connection.for_receiving) as connection:
        brokers = ", ".join(route.broker for route in connection.routes())
    return f"{settings.rocketmq_group} can receive from {brokers}"


@contextmanager
def _connected(settings: Settings, build: Callable[[Access], Connection]) -> Iterator[Connection]:
    access = Access.of(settings)
    require_library()
    connection = build(access)
    try:
        connection.start()
        yield connection
    finally:
        connection.close()
