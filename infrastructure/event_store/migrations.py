"""The tables, as numbered migrations, and the checks that keep a log whole (docs/event-log.md)."""

from dataclasses import dataclass

from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.domain.errors import CouponClockError

OLDEST_POSTGRESQL = 150_000

# Positions are GENERATED ALWAYS: one drawn before the statement that uses it would be held by nobody (LOCK_TRIGGER).
LOG = """
CREATE FUNCTION coupon_clock_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp()';

CREATE TABLE coupon_template_events (
    originator_id      uuid   NOT NULL,
    originator_version bigint NOT NULL,
    topic              text   NOT NULL,
    state              bytea  NOT NULL,
    notification_id    bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (originator_id, originator_version)
);
CREATE UNIQUE INDEX coupon_template_events_notification_id_idx ON coupon_template_events (notification_id ASC);

CREATE TABLE alarm (
    stream_id    uuid PRIMARY KEY,
    due_at       timestamptz NOT NULL,
    armed_at     timestamptz,
    leased_until timestamptz
);
CREATE INDEX alarm_due_idx     ON alarm (due_at, stream_id);
CREATE INDEX alarm_unarmed_idx ON alarm (due_at) WHERE armed_at IS NULL;

CREATE TABLE checkpoint (
    name         text PRIMARY KEY,
    position     bigint  NOT NULL,
    build        integer NOT NULL DEFAULT 1,
    fold_version integer NOT NULL DEFAULT 1,
    leased_by    uuid,
    leased_until timestamptz
);

CREATE TABLE cluster (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    place    text NOT NULL
);

CREATE TABLE rejected_message (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id  text        NOT NULL,
    reason      text        NOT NULL,
    body        bytea       NOT NULL,
    rejected_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
"""

# Fires before positions are drawn, for every writer, ours or not: whoever has a position holds the shared lock until
# its rows are visible or gone, which is what followers wait for (follower.py). It bounds that transaction, because
# followers stand still for it, and refuses to acknowledge a commit that a crash could take back.
# The bounds are the trigger's arguments: longest pause inside the transaction, longest transaction (PostgreSQL 17 on).
# A writer that set itself a shorter one keeps it.
LOCK_TRIGGER = """
CREATE FUNCTION coupon_clock_announce_writer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1129271116, TG_RELID::int4);
    IF NOT current_setting('idle_in_transaction_session_timeout')::interval BETWEEN '1ms' AND TG_ARGV[0]::interval THEN
        PERFORM set_config('idle_in_transaction_session_timeout', TG_ARGV[0], true);
    END IF;
    IF NOT current_setting('transaction_timeout', true)::interval BETWEEN '1ms' AND TG_ARGV[1]::interval THEN
        PERFORM set_config('transaction_timeout', TG_ARGV[1], true);
    END IF;
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER announce_writer BEFORE INSERT ON coupon_template_events
    FOR EACH STATEMENT EXECUTE FUNCTION coupon_clock_announce_writer('30s', '60s');
"""

APPEND_ONLY = """
CREATE FUNCTION coupon_clock_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the log % is append only: % is refused', TG_TABLE_NAME, TG_OP
        USING HINT = 'Append an event that corrects what is wrong.';
END $$;
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON coupon_template_events
    FOR EACH STATEMENT EXECUTE FUNCTION coupon_clock_refuse_change();
"""

# First each stream's lowest version, and only directly after the one before it; those that got in change their alarms
# and bring the rest, where a conflict rolls all back. Streams left out come back with position null and the version
# they have. Rows are inserted in the order of their ids, so that two batches never wait for each other in a circle.
# `longest_wait`: for a writer that has the same stream under way; by default the connection's lock_timeout.
# The look for the version before is a scalar subquery, because PostgreSQL may answer an EXISTS by hashing the table.
APPEND = """
CREATE FUNCTION coupon_clock_append(
    ids uuid[], versions bigint[], topics text[], states bytea[], alarm_ids uuid[], alarm_due_ats timestamptz[],
    longest_wait interval
) RETURNS TABLE (stream_id uuid, version bigint, log_position bigint) LANGUAGE plpgsql AS $$
DECLARE
    got_ids       uuid[];
    got_versions  bigint[];
    got_positions bigint[];
BEGIN
    IF longest_wait IS NOT NULL THEN
        PERFORM set_config('lock_timeout', extract(milliseconds FROM longest_wait)::int::text, true);
    END IF;

    WITH got AS (
        INSERT INTO coupon_template_events AS log (originator_id, originator_version, topic, state)
        SELECT first.id, first.version, first.topic, first.state
          FROM (SELECT DISTINCT ON (given.id) given.*
                  FROM unnest(ids, versions, topics, states) AS given (id, version, topic, state)
                 ORDER BY given.id, given.version) AS first
         WHERE first.version = 1
            OR (SELECT true
                  FROM coupon_template_events AS previous
                 WHERE previous.originator_id = first.id AND previous.originator_version = first.version - 1)
         ORDER BY first.id
            ON CONFLICT (originator_id, originator_version) DO NOTHING
        RETURNING log.originator_id, log.originator_version, log.notification_id
    ), changed AS (
        SELECT change.id, change.due_at
          FROM unnest(alarm_ids, alarm_due_ats) AS change (id, due_at)
          JOIN got ON got.originator_id = change.id
    ), kept AS (
        INSERT INTO alarm AS kept (stream_id, due_at)
        SELECT changed.id, changed.due_at FROM changed WHERE changed.due_at IS NOT NULL
            ON CONFLICT ON CONSTRAINT alarm_pkey DO UPDATE
           SET due_at = excluded.due_at, armed_at = NULL, leased_until = NULL
         WHERE kept.due_at <> excluded.due_at
    ), dropped AS (
        DELETE FROM alarm USING changed WHERE alarm.stream_id = changed.id AND changed.due_at IS NULL
    )
    SELECT array_agg(got.originator_id), array_agg(got.originator_version), array_agg(got.notification_id)
      INTO got_ids, got_versions, got_positions
      FROM got;

    RETURN QUERY SELECT * FROM unnest(got_ids, got_versions, got_positions);

    IF cardinality(ids) > coalesce(cardinality(got_ids), 0) THEN
        RETURN QUERY
        INSERT INTO coupon_template_events AS log (originator_id, originator_version, topic, state)
        SELECT given.id, given.version, given.topic, given.state
          FROM unnest(ids, versions, topics, states) AS given (id, version, topic, state)
          JOIN unnest(got_ids, got_versions) AS got (id, version)
            ON given.id = got.id AND given.version > got.version
         ORDER BY given.id, given.version
        RETURNING log.originator_id, log.originator_version, log.notification_id;

        RETURN QUERY
        SELECT DISTINCT given.id,
               coalesce((SELECT max(log.originator_version) FROM coupon_template_events AS log
                          WHERE log.originator_id = given.id), 0),
               NULL::bigint
          FROM unnest(ids) AS given (id)
         WHERE given.id <> ALL (coalesce(got_ids, '{}'));
    END IF;
END $$;
"""

# Each stream for itself, for a batch that waited in vain for somebody who has one of its streams under way: a stream
# that is still not free within the wait comes back with neither version nor position, and the rest goes in.
APPEND_EACH = """
CREATE FUNCTION coupon_clock_append_each(
    ids uuid[], versions bigint[], topics text[], states bytea[], alarm_ids uuid[], alarm_due_ats timestamptz[],
    longest_wait interval
) RETURNS TABLE (stream_id uuid, version bigint, log_position bigint) LANGUAGE plpgsql AS $$
DECLARE
    stream record;
BEGIN
    FOR stream IN
        SELECT given.id,
               array_agg(given.id) AS ids,
               array_agg(given.version ORDER BY given.version) AS versions,
               array_agg(given.topic ORDER BY given.version) AS topics,
               array_agg(given.state ORDER BY given.version) AS states,
               alarm.changes,
               alarm.due_ats
          FROM unnest(ids, versions, topics, states) AS given (id, version, topic, state)
          LEFT JOIN (SELECT change.id, array_agg(change.id) AS changes, array_agg(change.due_at) AS due_ats
                       FROM unnest(alarm_ids, alarm_due_ats) AS change (id, due_at)
                      GROUP BY change.id) AS alarm USING (id)
         GROUP BY given.id, alarm.changes, alarm.due_ats
         ORDER BY given.id
    LOOP
        BEGIN
            RETURN QUERY
            SELECT * FROM coupon_clock_append(stream.ids, stream.versions, stream.topics, stream.states,
                                              stream.changes, stream.due_ats, longest_wait);
        EXCEPTION WHEN lock_not_available THEN
            stream_id := stream.id;
            version := NULL;
            log_position := NULL;
            RETURN NEXT;
        END;
    END LOOP;
END $$;
"""

MIGRATIONS: tuple[str, ...] = (LOG + LOCK_TRIGGER + APPEND_ONLY + APPEND + APPEND_EACH,)
"""Number n is MIGRATIONS[n - 1]. One that has been released is never changed."""

MIGRATION_LOCK = 1129271117


@dataclass(eq=False)
class SchemaMissing(CouponClockError):
    """The schema {schema} is at migration {found}, this code needs {needed}: run `coupon-clock migrate`."""

    schema: str
    found: int
    needed: int


class SchemaTooNew(SchemaMissing):
    """The schema {schema} is at migration {found}, this code knows {needed}: install a newer coupon-clock."""


@dataclass(eq=False)
class UnsafeLog(CouponClockError):
    """Nothing is written to this database before it is mended: {reason}."""

    reason: str


def migrate(connection: Connection[TupleRow]) -> list[int]:
    """Brings the schema up to date and answers with the numbers applied. Safe when several processes start at once.

    Raises SchemaTooNew, UnsafeLog.
    """
    refuse_unsafe_server(connection)
    (schema,) = one(connection, "SELECT current_setting('search_path')")
    with connection.transaction():
        connection.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        if one(connection, "SELECT to_regnamespace(%s) IS NULL", schema)[0]:
            connection.execute(f"CREATE SCHEMA {schema}")
        connection.execute("CREATE TABLE IF NOT EXISTS migration (number integer PRIMARY KEY, applied_at timestamptz)")
        found = applied(connection)
        if found > len(MIGRATIONS):
            raise SchemaTooNew(schema, found, len(MIGRATIONS))
        for number in range(found + 1, len(MIGRATIONS) + 1):
            connection.execute(MIGRATIONS[number - 1])
            connection.execute("INSERT INTO migration VALUES (%s, clock_timestamp())", (number,))
    return list(range(found + 1, len(MIGRATIONS) + 1))


def check(connection: Connection[TupleRow]) -> None:
    """Raises SchemaMissing, SchemaTooNew, or UnsafeLog with what to do."""
    refuse_unsafe_server(connection)
    (schema, exists) = one(connection, "SELECT current_setting('search_path'), to_regclass('migration') IS NOT NULL")
    found = applied(connection) if exists else 0
    if found != len(MIGRATIONS):
        raise (SchemaMissing if found < len(MIGRATIONS) else SchemaTooNew)(schema, found, len(MIGRATIONS))
    refuse_unsafe_log(connection)


def refuse_unsafe(connection: Connection[TupleRow]) -> None:
    """For each new connection: it may lead to another server than the last one. Raises UnsafeLog."""
    refuse_unsafe_server(connection)
    if one(connection, "SELECT to_regclass('coupon_template_events') IS NOT NULL")[0]:
        refuse_unsafe_log(connection)


def applied(connection: Connection[TupleRow]) -> int:
    (number,) = one(connection, "SELECT coalesce(max(number), 0) FROM migration")
    return int(number)


def refuse_unsafe_server(connection: Connection[TupleRow]) -> None:
    version = connection.info.server_version
    if version < OLDEST_POSTGRESQL:
        raise UnsafeLog(f"PostgreSQL is {version // 10_000}, and 15 is the oldest that works: upgrade it")
    if one(connection, "SELECT pg_is_in_recovery()")[0]:
        raise UnsafeLog("the server is a standby: connect to the primary")


def refuse_unsafe_log(connection: Connection[TupleRow]) -> None:
    refuse_sleeping_triggers(connection)
    refuse_unsafe_sequence(connection)
    refuse_checkpoint_beyond_log(connection)


def refuse_sleeping_triggers(connection: Connection[TupleRow]) -> None:
    """A restore can leave them out or disabled: then nobody announces writers, and followers skip events."""
    (awake,) = one(
        connection,
        """
        SELECT count(*)
          FROM pg_trigger
         WHERE tgrelid = to_regclass('coupon_template_events')
           AND tgname IN ('announce_writer', 'refuse_change')
           AND tgenabled IN ('O', 'A')
        """,
    )
    if awake != 2:
        raise UnsafeLog(
            "the log's triggers are missing or disabled: ALTER TABLE coupon_template_events ENABLE TRIGGER ALL, "
            "or restore them from the dump"
        )


def refuse_unsafe_sequence(connection: Connection[TupleRow]) -> None:
    """A cached or lagging sequence hands out positions below ones that followers have passed."""
    sequence = "coupon_template_events_notification_id_seq"
    # The log first: it only grows, so a sequence read after it is never behind by chance.
    (highest,) = one(connection, "SELECT coalesce(max(notification_id), 0) FROM coupon_template_events")
    (last, called) = one(connection, f"SELECT last_value, is_called FROM {sequence}")
    (cache,) = one(connection, "SELECT seqcache FROM pg_sequence WHERE seqrelid = to_regclass(%s)", sequence)
    if cache != 1:
        raise UnsafeLog(f"the sequence {sequence} has a cache of {cache}: ALTER SEQUENCE {sequence} CACHE 1")
    if last < highest or (last == highest and not called):
        raise UnsafeLog(
            f"the sequence {sequence} is at {last}, its table at {highest}: SELECT setval('{sequence}', {highest})"
        )


def refuse_checkpoint_beyond_log(connection: Connection[TupleRow]) -> None:
    """What such a follower took in is in the log no more, and it would skip what takes those positions next."""
    beyond = connection.execute(
        """
        SELECT name, position, log.highest
          FROM checkpoint, (SELECT coalesce(max(notification_id), 0) AS highest FROM coupon_template_events) AS log
         WHERE position > log.highest
         ORDER BY name
        """
    ).fetchone()
    if beyond:
        name, position, highest = beyond
        raise UnsafeLog(
            f"the checkpoint of {name} is at {position}, beyond the log's end at {highest}: UPDATE checkpoint "
            f"SET position = {highest} WHERE name = '{name}', then rebuild what {name} fills from the log"
        )


# ── restores and failovers ───────────────────────────────────────────────────────────────────────

PLACE = """
SELECT system_identifier
       || ' timeline ' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
       || ' database ' || (SELECT oid FROM pg_database WHERE datname = current_database())
  FROM pg_control_system()
"""

REMEMBER = f"""
INSERT INTO cluster (place) ({PLACE})
    ON CONFLICT (only_row) DO UPDATE SET place = excluded.place WHERE cluster.place <> excluded.place
"""


def failover_detected(connection: Connection[TupleRow]) -> bool:
    """Whether the log came to another cluster, timeline or database since `remember_cluster`, by a restore or failover.

    What was told to others since that backup may be unknown here, and what is known here may never have reached them.
    """
    remembered = connection.execute("SELECT place FROM cluster").fetchone()
    return remembered is not None and remembered != one(connection, PLACE)


def remember_cluster(connection: Connection[TupleRow]) -> None:
    """Call it after what a move calls for is done: a crash between the two does it again."""
    connection.execute(REMEMBER)


def one(connection: Connection[TupleRow], statement: str, *parameters: object) -> TupleRow:
    row = connection.execute(statement, parameters).fetchone()
    assert row is not None
    return row
