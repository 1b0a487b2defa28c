-- Three roles, for whoever wants to separate them: run it as a superuser, before the first migration or after any, and
-- give the roles passwords. It can be run again.
--
-- coupon_clock_owner   migrate, rebuild
-- coupon_clock_app     commands, queries, run, import
-- coupon_clock_reader  queries, doctor, verify
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['coupon_clock_owner', 'coupon_clock_app', 'coupon_clock_reader'] LOOP
        IF to_regrole(role) IS NULL THEN
            EXECUTE format('CREATE ROLE %I LOGIN', role);
        END IF;
        EXECUTE format('ALTER ROLE %I SET default_transaction_isolation TO ''read committed''', role);
    END LOOP;
END $$;
-- What a rebuild or a verification takes long for has no limit; each wait for it has one, on the client's side.
ALTER ROLE coupon_clock_app SET statement_timeout TO '10s';

CREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION coupon_clock_owner;
ALTER SCHEMA {schema} OWNER TO coupon_clock_owner;
DO $$
DECLARE
    relation regclass;
    routine  regprocedure;
BEGIN
    FOR relation IN SELECT oid FROM pg_class
                     WHERE relnamespace = '{schema}'::regnamespace AND relkind IN ('r', 'p') LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO coupon_clock_owner', relation);
    END LOOP;
    FOR routine IN SELECT oid FROM pg_proc WHERE pronamespace = '{schema}'::regnamespace LOOP
        EXECUTE format('ALTER ROUTINE %s OWNER TO coupon_clock_owner', routine);
    END LOOP;
END $$;

GRANT USAGE ON SCHEMA {schema} TO coupon_clock_app, coupon_clock_reader;
GRANT SELECT ON ALL TABLES    IN SCHEMA {schema} TO coupon_clock_app, coupon_clock_reader;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO coupon_clock_app, coupon_clock_reader;
GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO coupon_clock_app;
ALTER DEFAULT PRIVILEGES FOR ROLE coupon_clock_owner IN SCHEMA {schema}
    GRANT SELECT ON TABLES TO coupon_clock_app, coupon_clock_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE coupon_clock_owner IN SCHEMA {schema}
    GRANT SELECT ON SEQUENCES TO coupon_clock_app, coupon_clock_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE coupon_clock_owner IN SCHEMA {schema}
    GRANT INSERT, UPDATE, DELETE ON TABLES TO coupon_clock_app;

-- Whose old snapshots and sessions `doctor` names.
GRANT pg_read_all_stats TO coupon_clock_reader;

-- The log is append only, and what the schema is belongs to its owner.
DO $$
BEGIN
    IF to_regclass('{schema}.event') IS NOT NULL THEN
        REVOKE UPDATE, DELETE ON {schema}.event FROM coupon_clock_app;
        REVOKE INSERT, UPDATE, DELETE ON {schema}.schema_migration, {schema}.projection_table FROM coupon_clock_app;
    END IF;
END $$;
