-- Events of many streams with their alarms, in one call.
--
-- First each stream's lowest version, and only directly after the one before it; those that got in change their alarms
-- and bring the rest, where a conflict rolls all back. Streams left out come back with position null and the version
-- they have. Rows are inserted in the order of their ids, so that two batches never wait for each other in a circle.
-- longest_wait: for a writer that has the same stream under way; by default the connection's lock_timeout.
-- The look for the version before is a scalar subquery, because PostgreSQL may answer an EXISTS by hashing the table.
CREATE FUNCTION {schema}.append_events(
    ids uuid[], versions bigint[], topics text[], states bytea[], command_ids uuid[], causes text[], actors text[],
    alarm_ids uuid[], alarm_due_ats timestamptz[], longest_wait interval
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
        INSERT INTO {schema}.event AS log
               (originator_id, originator_version, topic, state, command_id, cause, actor)
        SELECT first.id, first.version, first.topic, first.state, first.command_id, first.cause, first.actor
          FROM (SELECT DISTINCT ON (given.id) given.*
                  FROM unnest(ids, versions, topics, states, command_ids, causes, actors)
                       AS given (id, version, topic, state, command_id, cause, actor)
                 ORDER BY given.id, given.version) AS first
         WHERE first.version = 1
            OR (SELECT true
                  FROM {schema}.event AS previous
                 WHERE previous.originator_id = first.id AND previous.originator_version = first.version - 1)
         ORDER BY first.id
            ON CONFLICT (originator_id, originator_version) DO NOTHING
        RETURNING log.originator_id, log.originator_version, log.notification_id
    ), changed AS (
        SELECT change.id, change.due_at
          FROM unnest(alarm_ids, alarm_due_ats) AS change (id, due_at)
          JOIN got ON got.originator_id = change.id
    ), kept AS (
        INSERT INTO {schema}.alarm AS kept (stream_id, due_at)
        SELECT changed.id, changed.due_at FROM changed WHERE changed.due_at IS NOT NULL
            ON CONFLICT ON CONSTRAINT alarm_pkey DO UPDATE
           SET due_at = excluded.due_at, armed_at = NULL, leased_until = NULL
         WHERE kept.due_at <> excluded.due_at
    ), dropped AS (
        DELETE FROM {schema}.alarm USING changed WHERE alarm.stream_id = changed.id AND changed.due_at IS NULL
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
               coalesce((SELECT max(log.originator_version) FROM {schema}.event AS log
                          WHERE log.originator_id = given.id), 0),
               NULL::bigint
          FROM unnest(ids) AS given (id)
         WHERE given.id <> ALL (coalesce(got_ids, ARRAY[]::uuid[]));
    END IF;
END $$;

-- Each stream for itself, for a batch that waited in vain for somebody who has one of its streams under way: a stream
-- that is still not free within the wait comes back with neither version nor position, and the rest goes in.
CREATE FUNCTION {schema}.append_each_stream(
    ids uuid[], versions bigint[], topics text[], states bytea[], command_ids uuid[], causes text[], actors text[],
    alarm_ids uuid[], alarm_due_ats timestamptz[], longest_wait interval
) RETURNS TABLE (stream_id uuid, version bigint, log_position bigint) LANGUAGE plpgsql AS $$
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
               alarm.changes,
               alarm.due_ats
          FROM unnest(ids, versions, topics, states, command_ids, causes, actors)
               AS given (id, version, topic, state, command_id, cause, actor)
          LEFT JOIN (SELECT change.id, array_agg(change.id) AS changes, array_agg(change.due_at) AS due_ats
                       FROM unnest(alarm_ids, alarm_due_ats) AS change (id, due_at)
                      GROUP BY change.id) AS alarm USING (id)
         GROUP BY given.id, alarm.changes, alarm.due_ats
         ORDER BY given.id
    LOOP
        BEGIN
            RETURN QUERY
            SELECT * FROM {schema}.append_events(
                stream.ids, stream.versions, stream.topics, stream.states, stream.command_ids, stream.causes,
                stream.actors, stream.changes, stream.due_ats, longest_wait);
        EXCEPTION WHEN lock_not_available THEN
            stream_id := stream.id;
            version := NULL;
            log_position := NULL;
            RETURN NEXT;
        END;
    END LOOP;
END $$;
