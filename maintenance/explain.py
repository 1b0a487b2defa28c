"""The life of one stream, from the log and the tables beside it: what happened, what comes next, and what keeps it.

Reads what is stored as it is, so that an event which nobody can read is shown too.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import reduce
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from msgspec import Struct
from psycopg import Connection
from psycopg.rows import TupleRow, class_row

from coupon_clock.infrastructure.event_store.store import Envelope, UnreadableEvent
from coupon_clock.infrastructure.postgres.database import Database, Schema, fetch_one
from coupon_clock.infrastructure.postgres.errors import MissingRight
from coupon_clock.infrastructure.processes import all_processes, roles_run
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.runtime import Runtime

MOST_EVENTS = 1_000
LONGEST_STATE = 2_000
A_MOMENT = timedelta(seconds=5)
"""So long may an ending take before something is wrong."""
REPAIR = "coupon-clock rebuild alarm"
BY = {"command": "a command", "message": "the consumer", "reconciler": "the reconciler"}

Row = TypeVar("Row")

EVENTS = """
SELECT originator_version AS version, notification_id AS position, recorded_at, topic, cause, actor,
       convert_from(substr(state, 1, %(longest)s), 'LATIN1') AS state
  FROM {schema}.event
 WHERE originator_id = %(id)s
 ORDER BY originator_version
 LIMIT %(most)s
"""
ALARM = """
SELECT due_at, version, topic, armed_at, leased_until, stuck_since, stuck_until, stuck_by
  FROM {schema}.alarm
 WHERE stream_id = %s
"""
ALARM_IS_FREE = "SELECT FROM {schema}.alarm WHERE stream_id = %s FOR NO KEY UPDATE SKIP LOCKED"
FOLLOWED = "SELECT name, kind, position, stopped_by FROM {schema}.checkpoint ORDER BY kind DESC, name"
QUARANTINED = "SELECT projection, version, reason, since FROM {schema}.quarantine WHERE stream_id = %s"
REJECTED = """
SELECT rejected_at, reason
  FROM {schema}.rejected_message
 WHERE position(convert_to(%s, 'UTF8') IN body) > 0
 ORDER BY id DESC
 LIMIT 10
"""


class StoredEvent(NamedTuple):
    """As it is stored; of `state` the first 2,000 bytes."""

    version: int
    position: int
    recorded_at: datetime
    topic: str
    cause: str
    actor: str | None
    state: str


class StoredAlarm(NamedTuple):
    """`version`, `topic`: of the ending that is prepared, if any."""

    due_at: datetime
    version: int | None
    topic: str | None
    armed_at: datetime | None
    leased_until: datetime | None
    stuck_since: datetime | None
    stuck_until: datetime | None
    stuck_by: str | None


class Followed(NamedTuple):
    """How far something that follows the log is; `has_all`: of this stream."""

    name: str
    kind: str
    position: int
    stopped_by: str | None
    has_all: bool


class Explanation(Struct, frozen=True):
    """`why`: what is so, in a sentence; `do`: what helps, where something is wrong. `unreadable`: the first event that
    this version cannot read."""

    stream_id: UUID
    at: datetime
    events: list[StoredEvent]
    alarm: StoredAlarm | None
    unreadable: str | None
    followed: list[Followed]
    quarantined: list[tuple[str, int, str, datetime]]
    rejected: list[tuple[datetime, str]]
    why: str
    do: str | None


class Streams(NamedTuple):
    """Of one log. `load`: as much of a stream as can be read, and the first event that cannot; `due_at`: when one with
    these events is due, by its kind."""

    database: Database
    load: Callable[[UUID], tuple[list[Envelope[Any]], UnreadableEvent | None]]
    due_at: Callable[[Sequence[Envelope[Any]]], datetime | None]


def of_runtime(runtime: Runtime[Any, Any, Any]) -> Streams:
    def due_at(envelopes: Sequence[Envelope[Any]]) -> datetime | None:
        state = reduce(runtime.decider.evolve, (envelope.event for envelope in envelopes), None)
        return None if state is None else runtime.decider.due_at(state)

    return Streams(runtime.database, runtime.store.load_readable, due_at)


def explain(streams: Streams, stream_id: UUID) -> Explanation:
    """Raises DatabaseUnavailable."""
    database, schema = streams.database, streams.database.schema
    envelopes, unreadable = streams.load(stream_id)
    with database.connection() as connection:
        (at,) = fetch_one(connection, schema.sql("SELECT {schema}.now_utc()"))
        parameters = {"id": stream_id, "most": MOST_EVENTS, "longest": LONGEST_STATE}
        events = rows(connection, schema, StoredEvent, EVENTS, parameters)
        (alarm,) = rows(connection, schema, StoredAlarm, ALARM, (stream_id,)) or (None,)
        last = events[-1].position if events else 0
        followed = [
            Followed(name, kind, position, stopped_by, position >= last)
            for name, kind, position, stopped_by in connection.execute(schema.sql(FOLLOWED))
        ]
        quarantined = connection.execute(schema.sql(QUARANTINED), (stream_id,)).fetchall()
        rejected = connection.execute(schema.sql(REJECTED), (str(stream_id),)).fetchall()
        held = alarm is not None and is_held(connection, schema, stream_id)
        roles = set(roles_run(all_processes(connection, schema)))
    due_at, was_due_at = (due_by_the_log(streams, some) for some in (envelopes, envelopes[:-1]))
    facts = Facts(at, events, alarm, due_at, was_due_at, unreadable, held, roles)
    why, do = verdict(facts, database.settings)
    return Explanation(
        stream_id=stream_id,
        at=at,
        events=events,
        alarm=alarm,
        unreadable=str(unreadable) if unreadable else None,
        followed=followed,
        quarantined=quarantined,
        rejected=rejected,
        why=why,
        do=do,
    )


def is_held(connection: Connection[TupleRow], schema: Schema, stream_id: UUID) -> bool:
    """Whether somebody has the alarm locked; unknown, and so no, to a role that may only read."""
    try:
        return not connection.execute(schema.sql(ALARM_IS_FREE), (stream_id,)).rowcount
    except MissingRight:
        return False


def rows(
    connection: Connection[TupleRow], schema: Schema, kind: type[Row], statement: str, parameters: Any
) -> list[Row]:
    with connection.cursor(row_factory=class_row(kind)) as cursor:
        return cursor.execute(schema.sql(statement), parameters).fetchall()


def due_by_the_log(streams: Streams, envelopes: Sequence[Envelope[Any]]) -> datetime | None:
    """None where nothing is due, and where the code of its kind cannot say."""
    try:
        return streams.due_at(envelopes)
    except Exception:
        return None


# ── why ──────────────────────────────────────────────────────────────────────────────────────────


class Facts(NamedTuple):
    """`due_at`: by the log; `was_due_at`: before its last event; `is_held`: whether somebody has the alarm locked;
    `roles`: that some process runs."""

    at: datetime
    events: list[StoredEvent]
    alarm: StoredAlarm | None
    due_at: datetime | None
    was_due_at: datetime | None
    unreadable: UnreadableEvent | None
    is_held: bool
    roles: set[str]


Verdict = tuple[str, str | None]
"""What is so, and what helps, if anything is wrong."""


def verdict(facts: Facts, settings: Settings) -> Verdict:
    alarm = facts.alarm
    if not facts.events:
        return "there is no such stream in this log", "check the id; after a restore of the log: coupon-clock doctor"
    if alarm is None:
        return without_alarm(facts)
    if facts.due_at is not None and facts.due_at != alarm.due_at:
        return f"its alarm is set to {shown(alarm.due_at)}, and the log says {shown(facts.due_at)}", REPAIR
    if alarm.due_at > facts.at:
        return not_due_yet(facts, alarm, settings)
    return overdue(facts, alarm)


def without_alarm(facts: Facts) -> Verdict:
    last = facts.events[-1]
    if facts.due_at is not None:
        return f"it is due at {shown(facts.due_at)} and has no alarm, so nothing ends it", REPAIR
    if facts.unreadable:
        return f"{facts.unreadable}", "install a version that reads it"
    stored = f"nothing is due any more: {last.topic} was stored at {shown(last.recorded_at)} by {BY[last.cause]}"
    if last.cause == "command" or facts.was_due_at is None:
        return stored, None
    late = 1_000 * (last.recorded_at - facts.was_due_at).total_seconds()
    return f"{stored}, {late:,.1f} ms after it was due", None


def not_due_yet(facts: Facts, alarm: StoredAlarm, settings: Settings) -> Verdict:
    due = f"it is due at {shown(alarm.due_at)}"
    ending = f", and its ending is prepared ({alarm.topic})" if alarm.topic else ""
    if facts.unreadable and not alarm.topic:
        return f"{due}, and cannot be ended then: {facts.unreadable}", "install a version that reads it"
    if not facts.roles & {"consumer", "reconciler"}:
        return f"{due}{ending}; no process would end it", "coupon-clock run"
    if alarm.armed_at:
        return f"{due}{ending}; RocketMQ has had its message since {shown(alarm.armed_at)}, a consumer ends it", None
    if alarm.leased_until and alarm.leased_until > facts.at:
        return f"{due}{ending}; a process of the in-process broker holds its message, and ends it", None
    published_at = alarm.due_at - settings.arming_window_time
    if published_at > facts.at:
        return f"{due}{ending}; the relay publishes its message at {shown(published_at)}", None
    if "relay" not in facts.roles:
        return (
            f"{due}{ending}; no relay runs, so the reconciler ends it, up to 2 s late",
            "coupon-clock run --role relay",
        )
    return f"{due}{ending}; the relay is about to publish its message", None


def overdue(facts: Facts, alarm: StoredAlarm) -> Verdict:
    due = f"it is due since {shown(alarm.due_at)}"
    if alarm.stuck_until and alarm.stuck_until > facts.at:
        again = f"it is tried again at {shown(alarm.stuck_until)}"
        return f"{due} and cannot be ended: {alarm.stuck_by} {again}", "correct what it names"
    if facts.is_held:
        return f"{due}, and an open transaction holds it", "end that transaction; coupon-clock doctor names the oldest"
    if not facts.roles & {"consumer", "reconciler"}:
        return f"{due}, and no process runs that would end it", "coupon-clock run"
    if facts.at - alarm.due_at < A_MOMENT:
        return f"{due}, and is about to be ended", None
    return f"{due}, though processes run that should end it", "coupon-clock status, and their logs"


def shown(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"
