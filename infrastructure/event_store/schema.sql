-- The event log, the alarms and what goes with them. {{schema}} is filled in by migrations.py.

-- The one clock. Tests replace it in a throw-away database.
CREATE FUNCTION {schema}.now_utc() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp()';

-- The first five columns are those of the eventsourcing library. The defaults of the others are for writers that know
-- nothing of them. Positions are GENERATED ALWAYS: one drawn before the statement that uses it would be drawn without the
-- lock that followers look for (log_reader.py). Names that statements use are given here: PostgreSQL would choose others
-- where they are taken, instead of refusing.
CREATE TABLE {schema}.event (
    originator_id      uuid        NOT NULL,
    originator_version bigint      NOT NULL,
    topic              text        NOT NULL,
    state              bytea       NOT NULL,
    notification_id    bigint      NOT NULL
                       GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME {schema}.event_notification_id_seq),
    recorded_at        timestamptz NOT NULL DEFAULT {schema}.now_utc(),
    command_id         uuid,
    cause              text        NOT NULL DEFAULT 'command',
    actor              text,
    PRIMARY KEY (originator_id, originator_version)
);
CREATE UNIQUE INDEX event_notification_id_idx ON {schema}.event (notification_id ASC);

-- One row for each stream that is due some day. version, topic, ending: the event that the due time leads to, where it
-- was known at that version of the stream. stuck_since, stuck_until, stuck_by: since when it is due and cannot be handled,
-- for how long it is left alone, and why; the next append frees it. The space that fillfactor leaves keeps updates of
-- these in the same page, and out of the indexes. Rows come and go, so that vacuuming cannot wait for a fifth of them to
-- be dead.
CREATE TABLE {schema}.alarm (
    stream_id    uuid CONSTRAINT alarm_pkey PRIMARY KEY,
    due_at       timestamptz NOT NULL,
    version      bigint,
    topic        text,
    ending       bytea,
    armed_at     timestamptz,
    leased_until timestamptz,
    stuck_since  timestamptz,
    stuck_until  timestamptz,
    stuck_by     text
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 10000, autovacuum_analyze_threshold = 10000
);
CREATE INDEX alarm_due_idx     ON {schema}.alarm (due_at, stream_id);
CREATE INDEX alarm_unarmed_idx ON {schema}.alarm (due_at) WHERE armed_at IS NULL;

-- Up to where each projection and each follower has taken in the log. beyond_log: it was found past the last position
-- drawn, as after a restore of the log alone, and does not go on by itself. stopped_by: the error that keeps it where it
-- is, until the next batch that succeeds.
CREATE TABLE {schema}.checkpoint (
    name         text PRIMARY KEY,
    kind         text    NOT NULL CHECK (kind IN ('projection', 'follower')),
    position     bigint  NOT NULL CHECK (position >= 0),
    build        integer NOT NULL DEFAULT 1,
    fold_version integer NOT NULL DEFAULT 1,
    beyond_log   boolean NOT NULL DEFAULT false,
    stopped_by   text,
    stopped_at   timestamptz,
    step         text
);
COMMENT ON COLUMN {schema}.checkpoint.step IS 'Of a rebuild that is under way: what it does next.';

-- Streams that a projection leaves alone, because it could not take in one of their events: the first such event.
CREATE TABLE {schema}.quarantine (
    projection text        NOT NULL,
    stream_id  uuid        NOT NULL,
    version    bigint      NOT NULL,
    position   bigint      NOT NULL,
    reason     text        NOT NULL,
    since      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (projection, stream_id)
);

-- Events that a person had a follower pass over.
CREATE TABLE {schema}.skipped_event (
    follower   text        NOT NULL,
    position   bigint      NOT NULL,
    skipped_by text        NOT NULL,
    reason     text        NOT NULL,
    skipped_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (follower, position)
);

-- Who follows the log under a name, or rebuilds a projection, as the only one; `renewals` grows while it works.
-- working_since: of the piece of work that it has in hand, once that has taken some seconds.
CREATE TABLE {schema}.lease (
    name          text PRIMARY KEY,
    holder        uuid        NOT NULL,
    renewals      bigint      NOT NULL DEFAULT 0,
    who           text        NOT NULL,
    taken_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    working_since timestamptz
);

-- The tables that were made for projections: no other table of such a name is ever altered, replaced or dropped.
CREATE TABLE {schema}.projection_table (
    relation regclass PRIMARY KEY
);

-- Whole streams, in order of their ids, which a rebuild folds into its shadow in one transaction; `events` once done.
CREATE TABLE {schema}.rebuild_chunk (
    number     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    shadow     text   NOT NULL,
    after      uuid,
    through    uuid   NOT NULL,
    planned    bigint NOT NULL,
    claimed_by uuid,
    events     bigint
);

-- Processes that run loops (processes.py). loops: for how many seconds each was in one tick.
CREATE TABLE {schema}.process (
    instance     uuid PRIMARY KEY,
    host         text        NOT NULL,
    pid          integer     NOT NULL,
    roles        text[]      NOT NULL,
    version      text        NOT NULL,
    started_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    loops        jsonb       NOT NULL
);

CREATE TABLE {schema}.cluster_identity (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    identity text NOT NULL
);

CREATE TABLE {schema}.rejected_message (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id  text        NOT NULL,
    reason      text        NOT NULL,
    body        bytea       NOT NULL,
    body_bytes  bigint      NOT NULL,
    rejected_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- For applications of the eventsourcing library (persistence.py): states of aggregates at a version, and how far a
-- process has followed another application's log.
CREATE TABLE {schema}.snapshot (
    originator_id      uuid   NOT NULL,
    originator_version bigint NOT NULL,
    topic              text   NOT NULL,
    state              bytea  NOT NULL,
    PRIMARY KEY (originator_id, originator_version)
);
CREATE TABLE {schema}.tracking (
    application_name text PRIMARY KEY,
    notification_id  bigint NOT NULL
);

-- Bounds the transaction of every writer, ours or not, because followers stand still for it, and sees to it that no
-- commit is acknowledged that a crash could take back.
-- The bounds are the trigger's arguments: longest pause inside the transaction, longest transaction (PostgreSQL 17 on).
-- A writer that set itself a shorter one keeps it.
CREATE FUNCTION {schema}.bound_writer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
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
CREATE TRIGGER bound_writer BEFORE INSERT ON {schema}.event
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.bound_writer('30s', '60s');

CREATE FUNCTION {schema}.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the log % is append only: % is refused', TG_TABLE_NAME, TG_OP
        USING HINT = 'Append an event that corrects what is wrong.';
END $$;
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.event
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change();

-- A transaction that moves an end must not commit once that end has come, or is about to: what readers call over would
-- come back to life. The margin, the trigger's argument, covers the time between this check and the commit's visibility.
CREATE FUNCTION {schema}.refuse_late_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF least(OLD.due_at, NEW.due_at) <= {schema}.now_utc() + TG_ARGV[0]::interval THEN
        RAISE EXCEPTION 'the end of % was moved too late: it came before the commit', NEW.stream_id
            USING ERRCODE = 'serialization_failure', HINT = 'Run the transaction again.';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER refuse_late_move AFTER UPDATE OF due_at ON {schema}.alarm
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (OLD.due_at IS DISTINCT FROM NEW.due_at)
    EXECUTE FUNCTION {schema}.refuse_late_move('20 milliseconds');
