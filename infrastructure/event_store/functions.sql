-- Locks are taken in one order everywhere: alarms before events, both by stream. A call for several streams skips alarms
-- that others hold, and leaves those streams out; a call for one stream waits.
--
-- Settings of the session are those of whoever shares it, so each function has its own. Its statements are planned once a
-- session, because planning an append costs more than doing it; and no such plan scans a table, as it would be kept until
-- long after the table has grown.

-- Single calls are transactions of the isolation that the role or the database has by default.
CREATE FUNCTION {schema}.require_read_committed() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'transactions are % by default', current_setting('transaction_isolation')
            USING ERRCODE = 'invalid_transaction_initiation',
                  HINT = format('ALTER ROLE %I SET default_transaction_isolation TO ''read committed''', session_user);
    END IF;
END $$;

-- PostgreSQL's time, and the events of these streams; without any, the time alone. Nothing at all where several are too
-- much together: they are loaded in parts then.
CREATE FUNCTION {schema}.load_streams(ids uuid[], most_events bigint, most_bytes bigint) RETURNS TABLE (
    read_at timestamptz, originator_id uuid, originator_version bigint, topic text, state bytea,
    notification_id bigint, recorded_at timestamptz, command_id uuid, cause text, actor text
) LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
AS $$
BEGIN
    IF cardinality(ids) <= 1 THEN
        RETURN QUERY
        SELECT clock.now, log.originator_id, log.originator_version, log.topic, log.state,
               log.notification_id, log.recorded_at, log.command_id, log.cause, log.actor
          FROM (SELECT {schema}.now_utc() AS now) AS clock
          LEFT JOIN {schema}.event AS log ON log.originator_id = ANY (ids)
         ORDER BY log.originator_version;
    ELSE
        RETURN QUERY
        WITH log AS MATERIALIZED (
            SELECT event.* FROM {schema}.event WHERE event.originator_id = ANY (ids) LIMIT most_events + 1
        ), size AS (
            SELECT count(*) AS events, coalesce(sum(octet_length(log.state)), 0) AS bytes FROM log
        )
        SELECT clock.now, log.originator_id, log.originator_version, log.topic, log.state,
               log.notification_id, log.recorded_at, log.command_id, log.cause, log.actor
          FROM (SELECT {schema}.now_utc() AS now) AS clock
         CROSS JOIN size
          LEFT JOIN log ON true
         WHERE size.events <= most_events AND size.bytes <= most_bytes
         ORDER BY log.originator_id, log.originator_version;
    END IF;
END $$;

-- Events of many streams with their alarms, in one call.
--
-- After the alarms are locked, each stream's lowest version goes in, and only directly after the one before it; streams
-- that got in change their alarms and bring the rest, where a conflict rolls all back. Streams left out come back with
-- position null: with the version they have, where another append came first or the stream became due after
-- `decided_at`; without, where somebody holds their alarm. Rows are inserted in the order of their ids, so that two
-- batches never wait for each other in a circle.
-- longest_wait: for a writer that has the same stream under way; by default the function's lock_timeout.
-- An alarm that was due when this was decided is dropped before the next one of its stream is kept, because an update
-- would be taken for the late move of an end (schema.sql): the count has the drops come first.
-- The look for the version before is a scalar subquery, because PostgreSQL may answer an EXISTS by hashing the table.
CREATE FUNCTION {schema}.append_events(
    ids uuid[], versions bigint[], topics text[], states bytea[], command_ids uuid[], causes text[], actors text[],
    alarm_ids uuid[], alarm_due_ats timestamptz[], alarm_versions bigint[], ending_topics text[], endings bytea[],
    decided_at timestamptz, longest_wait interval
) RETURNS TABLE (stream_id uuid, version bigint, log_position bigint) LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
AS $$
DECLARE
    got_ids       uuid[];
    got_versions  bigint[];
    got_positions bigint[];
    busy          uuid[];
    became_due    uuid[];
    held_due_at   timestamptz;
BEGIN
    PERFORM {schema}.require_read_committed();
    IF longest_wait IS NOT NULL THEN
        PERFORM set_config('lock_timeout', extract(milliseconds FROM longest_wait)::int::text, true);
    END IF;

    IF versions[1] = 1 AND ids[1] = ids[cardinality(ids)] THEN
        -- A new stream has no alarm yet.
        IF alarm_due_ats[1] > decided_at AND alarm_due_ats[1] <= {schema}.now_utc() THEN
            became_due := ARRAY[ids[1]];
        END IF;
    ELSIF ids[1] = ids[cardinality(ids)] THEN
        SELECT alarm.due_at INTO held_due_at FROM {schema}.alarm WHERE alarm.stream_id = ids[1] FOR NO KEY UPDATE;
        IF held_due_at > decided_at AND held_due_at <= {schema}.now_utc() THEN
            became_due := ARRAY[ids[1]];
        END IF;
    ELSE
        WITH held AS MATERIALIZED (
            SELECT alarm.stream_id, alarm.due_at
              FROM {schema}.alarm
             WHERE alarm.stream_id = ANY (ids)
             ORDER BY alarm.stream_id
               FOR NO KEY UPDATE SKIP LOCKED)
        SELECT (SELECT array_agg(alarm.stream_id)
                  FROM {schema}.alarm
                 WHERE alarm.stream_id = ANY (ids)
                   AND NOT EXISTS (SELECT FROM held WHERE held.stream_id = alarm.stream_id)),
               (SELECT array_agg(passed.stream_id)
                  FROM (SELECT held.stream_id, held.due_at FROM held
                         UNION ALL
                        SELECT change.id, change.due_at FROM unnest(alarm_ids, alarm_due_ats) AS change (id, due_at))
                       AS passed
                 WHERE passed.due_at > decided_at AND passed.due_at <= (SELECT {schema}.now_utc()))
          INTO busy, became_due;
    END IF;

    WITH got AS (
        INSERT INTO {schema}.event AS log
               (originator_id, originator_version, topic, state, command_id, cause, actor)
        SELECT first.id, first.version, first.topic, first.state, first.command_id, first.cause, first.actor
          FROM (SELECT DISTINCT ON (given.id) given.*
                  FROM unnest(ids, versions, topics, states, command_ids, causes, actors)
                       AS given (id, version, topic, state, command_id, cause, actor)
                 WHERE (busy IS NULL OR given.id <> ALL (busy))
                   AND (became_due IS NULL OR given.id <> ALL (became_due))
                 ORDER BY given.id, given.version) AS first
         WHERE first.version = 1
            OR (SELECT true
                  FROM {schema}.event AS previous
                 WHERE previous.originator_id = first.id AND previous.originator_version = first.version - 1)
         ORDER BY first.id
            ON CONFLICT (originator_id, originator_version) DO NOTHING
        RETURNING log.originator_id, log.originator_version, log.notification_id
    ), changed AS (
        SELECT change.*
          FROM unnest(alarm_ids, alarm_due_ats, alarm_versions, ending_topics, endings)
               AS change (id, due_at, version, topic, ending)
          JOIN got ON got.originator_id = change.id
    ), dropped AS (
        DELETE FROM {schema}.alarm
         USING changed
         WHERE alarm.stream_id = changed.id
           AND (changed.due_at IS NULL OR alarm.due_at <= decided_at)
        RETURNING alarm.stream_id
    ), kept AS (
        INSERT INTO {schema}.alarm AS kept (stream_id, due_at, version, topic, ending)
        SELECT changed.id, changed.due_at, changed.version, changed.topic, changed.ending
          FROM changed
         WHERE changed.due_at IS NOT NULL
           AND (SELECT count(*) FROM dropped) IS NOT NULL
            ON CONFLICT ON CONSTRAINT alarm_pkey DO UPDATE
           SET due_at = excluded.due_at, version = excluded.version, topic = excluded.topic, ending = excluded.ending,
               stuck_since = NULL, stuck_until = NULL, stuck_by = NULL,
               armed_at     = CASE WHEN kept.due_at = excluded.due_at THEN kept.armed_at END,
               leased_until = CASE WHEN kept.due_at = excluded.due_at THEN kept.leased_until END
         WHERE kept.due_at <> excluded.due_at OR kept.ending IS NOT NULL OR excluded.ending IS NOT NULL
    )
    SELECT array_agg(got.originator_id), array_agg(got.originator_version), array_agg(got.notification_id)
      INTO got_ids, got_versions, got_positions
      FROM got;

    RETURN QUERY SELECT * FROM unnest(got_ids, got_versions, got_positions);

    IF cardinality(ids) > coalesce(cardinality(got_ids), 0) THEN
        RETURN QUERY
        INSERT INTO {schema}.event AS log (originator_id, originator_version, topic, state, command_id, cause, actor)
        SELECT given.id, given.version, given.topic, given.state, given.command_id, given.cause, given.actor
          FROM unnest(ids, versions, topics, states, command_ids, causes, actors)
               AS given (id, version, topic, state, command_id, cause, actor)
          JOIN unnest(got_ids, got_versions) AS got (id, version)
            ON given.id = got.id AND given.version > got.version
         ORDER BY given.id, given.version
        RETURNING log.originator_id, log.originator_version, log.notification_id;

        RETURN QUERY
        SELECT DISTINCT given.id,
               CASE WHEN busy IS NULL OR given.id <> ALL (busy) THEN
                   coalesce((SELECT max(log.originator_version) FROM {schema}.event AS log
                              WHERE log.originator_id = given.id), 0)
               END,
               NULL::bigint
          FROM unnest(ids) AS given (id)
         WHERE given.id <> ALL (coalesce(got_ids, ARRAY[]::uuid[]));
    END IF;
END $$;

-- Each stream for itself, for a batch that waited in vain for somebody who has one of its streams under way: a stream
-- that is still not free within the wait comes back with neither version nor position, and the rest goes in.
CREATE FUNCTION {schema}.append_each_stream(
    ids uuid[], versions bigint[], topics text[], states bytea[], command_ids uuid[], causes text[], actors text[],
    alarm_ids uuid[], alarm_due_ats timestamptz[], alarm_versions bigint[], ending_topics text[], endings bytea[],
    decided_at timestamptz, longest_wait interval
) RETURNS TABLE (stream_id uuid, version bigint, log_position bigint) LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
AS $$
DECLARE
    stream record;
BEGIN
    FOR stream IN
        SELECT given.id,
               array_agg(given.id) AS ids,
               array_agg(given.version    ORDER BY given.version) AS versions,
               array_agg(given.topic      ORDER BY given.version) AS topics,
               array_agg(given.state      ORDER BY given.version) AS states,
               array_agg(given.command_id ORDER BY given.version) AS command_ids,
               array_agg(given.cause      ORDER BY given.version) AS causes,
               array_agg(given.actor      ORDER BY given.version) AS actors,
               alarm.*
          FROM unnest(ids, versions, topics, states, command_ids, causes, actors)
               AS given (id, version, topic, state, command_id, cause, actor)
          LEFT JOIN (SELECT change.id              AS alarm_id,
                            ARRAY[change.id]       AS changes,
                            ARRAY[change.due_at]   AS due_ats,
                            ARRAY[change.version]  AS alarm_versions,
                            ARRAY[change.topic]    AS ending_topics,
                            ARRAY[change.ending]   AS endings
                       FROM unnest(alarm_ids, alarm_due_ats, alarm_versions, ending_topics, endings)
                            AS change (id, due_at, version, topic, ending)) AS alarm ON alarm_id = given.id
         GROUP BY given.id, alarm_id, changes, due_ats, alarm.alarm_versions, alarm.ending_topics, alarm.endings
         ORDER BY given.id
    LOOP
        BEGIN
            RETURN QUERY
            SELECT * FROM {schema}.append_events(
                stream.ids, stream.versions, stream.topics, stream.states, stream.command_ids, stream.causes,
                stream.actors, stream.changes, stream.due_ats, stream.alarm_versions, stream.ending_topics,
                stream.endings, decided_at, longest_wait);
        EXCEPTION WHEN lock_not_available THEN
            stream_id := stream.id;
            version := NULL;
            log_position := NULL;
            RETURN NEXT;
        END;
    END LOOP;
END $$;

-- Events in the order given, with alarms of their streams: all of it, or nothing where a version exists already.
CREATE FUNCTION {schema}.insert_events(
    ids uuid[], versions bigint[], topics text[], states bytea[], command_id uuid, cause text, actor text,
    alarm_ids uuid[], alarm_due_ats timestamptz[], alarm_versions bigint[], decided_at timestamptz
) RETURNS SETOF bigint LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
AS $$
BEGIN
    PERFORM {schema}.require_read_committed();
    PERFORM FROM {schema}.alarm WHERE alarm.stream_id = ANY (alarm_ids) ORDER BY alarm.stream_id FOR NO KEY UPDATE;

    RETURN QUERY
    INSERT INTO {schema}.event AS log (originator_id, originator_version, topic, state, command_id, cause, actor)
    SELECT given.id, given.version, given.topic, given.state,
           insert_events.command_id, insert_events.cause, insert_events.actor
      FROM unnest(ids, versions, topics, states) WITH ORDINALITY AS given (id, version, topic, state, n)
     ORDER BY given.n
    RETURNING log.notification_id;

    DELETE FROM {schema}.alarm
     USING unnest(alarm_ids, alarm_due_ats) AS change (id, due_at)
     WHERE alarm.stream_id = change.id
       AND (change.due_at IS NULL OR alarm.due_at <= decided_at);

    INSERT INTO {schema}.alarm AS kept (stream_id, due_at, version)
    SELECT change.id, change.due_at, change.version
      FROM unnest(alarm_ids, alarm_due_ats, alarm_versions) AS change (id, due_at, version)
     WHERE change.due_at IS NOT NULL
     ORDER BY change.id
        ON CONFLICT ON CONSTRAINT alarm_pkey DO UPDATE
       SET due_at = excluded.due_at, version = excluded.version, topic = NULL, ending = NULL,
           stuck_since = NULL, stuck_until = NULL, stuck_by = NULL, armed_at = NULL, leased_until = NULL
     WHERE kept.due_at <> excluded.due_at;
END $$;

-- The prepared endings of what is due, a page at a time: soonest first, beyond the key given, so that what cannot be
-- ended at the head hides nothing behind it. An ending is appended only where the stream is as its last append left it;
-- the rest comes back as others. Alarms that others hold are skipped.
--
-- One row: how many alarms were found, the last of them, the lateness in seconds of each ending, which of the streams
-- asked for were ended. Rows for all would cost their reader more than all of the statement.
CREATE FUNCTION {schema}.end_due(
    after_due_at timestamptz, after_stream_id uuid, page bigint, grace interval, asked uuid[],
    ending_cause text, longest_wait interval
) RETURNS TABLE (
    found bigint, last_due_at timestamptz, last_stream_id uuid, lateness float8[], ended uuid[],
    other_ids uuid[], other_due_ats timestamptz[]
) LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
AS $$
BEGIN
    PERFORM {schema}.require_read_committed();
    PERFORM set_config('lock_timeout', extract(milliseconds FROM longest_wait)::int::text, true);
    RETURN QUERY
    WITH due AS MATERIALIZED (
        SELECT alarm.stream_id, alarm.due_at, alarm.version, alarm.topic, alarm.ending
          FROM {schema}.alarm
         WHERE alarm.due_at <= (SELECT {schema}.now_utc() - grace)
           AND (alarm.due_at, alarm.stream_id) > (after_due_at, after_stream_id)
           AND (alarm.stuck_until IS NULL OR alarm.stuck_until <= (SELECT {schema}.now_utc()))
         ORDER BY alarm.due_at, alarm.stream_id
         LIMIT page
           FOR UPDATE SKIP LOCKED
    ), stored AS (
        INSERT INTO {schema}.event AS log (originator_id, originator_version, topic, state, command_id, cause)
        SELECT due.stream_id, due.version + 1, due.topic, due.ending, gen_random_uuid(), ending_cause
          FROM due
         WHERE due.ending IS NOT NULL
         ORDER BY due.stream_id
            ON CONFLICT (originator_id, originator_version) DO NOTHING
        RETURNING log.originator_id, log.recorded_at
    ), gone AS (
        DELETE FROM {schema}.alarm USING stored WHERE alarm.stream_id = stored.originator_id
    ), last AS (
        SELECT due.due_at, due.stream_id FROM due ORDER BY due.due_at DESC, due.stream_id DESC LIMIT 1
    )
    SELECT count(*),
           (SELECT last.due_at FROM last),
           (SELECT last.stream_id FROM last),
           array_agg(extract(epoch FROM stored.recorded_at - due.due_at)::float8)
               FILTER (WHERE stored.recorded_at IS NOT NULL),
           array_agg(due.stream_id)
               FILTER (WHERE stored.recorded_at IS NOT NULL AND due.stream_id IN (SELECT unnest(asked))),
           array_agg(due.stream_id ORDER BY due.due_at) FILTER (WHERE stored.recorded_at IS NULL),
           array_agg(due.due_at ORDER BY due.due_at)    FILTER (WHERE stored.recorded_at IS NULL)
      FROM due
      LEFT JOIN stored ON stored.originator_id = due.stream_id;
END $$;

-- The same of these streams, each for itself, for a page that waited in vain for a writer that does not lock alarms: a
-- stream that is still not free within the wait does not come back, and the rest is ended.
CREATE FUNCTION {schema}.end_each_stream(ids uuid[], ending_cause text, longest_wait interval)
RETURNS TABLE (stream_id uuid, due_at timestamptz, recorded_at timestamptz) LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
AS $$
DECLARE
    id uuid;
BEGIN
    PERFORM {schema}.require_read_committed();
    PERFORM set_config('lock_timeout', extract(milliseconds FROM longest_wait)::int::text, true);
    FOREACH id IN ARRAY ids LOOP
        BEGIN
            RETURN QUERY
            WITH due AS MATERIALIZED (
                SELECT alarm.stream_id, alarm.due_at, alarm.version, alarm.topic, alarm.ending
                  FROM {schema}.alarm
                 WHERE alarm.stream_id = id AND alarm.due_at <= (SELECT {schema}.now_utc())
                   FOR UPDATE SKIP LOCKED
            ), ended AS (
                INSERT INTO {schema}.event AS log (originator_id, originator_version, topic, state, command_id, cause)
                SELECT due.stream_id, due.version + 1, due.topic, due.ending, gen_random_uuid(), ending_cause
                  FROM due
                 WHERE due.ending IS NOT NULL
                    ON CONFLICT (originator_id, originator_version) DO NOTHING
                RETURNING log.originator_id, log.recorded_at
            ), gone AS (
                DELETE FROM {schema}.alarm USING ended WHERE alarm.stream_id = ended.originator_id
            )
            SELECT due.stream_id, due.due_at, ended.recorded_at
              FROM due
              LEFT JOIN ended ON ended.originator_id = due.stream_id;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END LOOP;
END $$;
