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
GRANT USAGE, CREATE ON SCHEMA {schema} TO coupon_clock_owner;
GRANT USAGE ON SCHEMA {schema} TO coupon_clock_app, coupon_clock_reader;

-- What the owner makes from now on.
ALTER DEFAULT PRIVILEGES FOR ROLE coupon_clock_owner IN SCHEMA {schema}
    GRANT SELECT ON TABLES TO coupon_clock_app, coupon_clock_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE coupon_clock_owner IN SCHEMA {schema}
    GRANT SELECT ON SEQUENCES TO coupon_clock_app, coupon_clock_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE coupon_clock_owner IN SCHEMA {schema}
    GRANT INSERT, UPDATE, DELETE ON TABLES TO coupon_clock_app;

-- Whose old snapshots and sessions `doctor` names.
GRANT pg_read_all_stats TO coupon_clock_reader;

-- What migrations and rebuilds have made, whoever ran them, and nothing else that is in the schema. The log is append
-- only, and what the schema is belongs to its owner.
DO $$
DECLARE
    relation regclass;
    routine  regprocedure;
    counter  regclass;
BEGIN
    IF to_regclass('{schema}.projection_table') IS NULL THEN
        RETURN;
    END IF;
    FOREACH relation IN ARRAY ARRAY(
        SELECT oid::regclass
          FROM pg_class
         WHERE relnamespace = '{schema}'::regnamespace
           AND (relname = ANY ({tables}) OR oid IN (SELECT projection_table.relation FROM {schema}.projection_table)))
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO coupon_clock_owner', relation);
        EXECUTE format('GRANT SELECT ON %s TO coupon_clock_app, coupon_clock_reader', relation);
        EXECUTE format('GRANT INSERT, UPDATE, DELETE ON %s TO coupon_clock_app', relation);
        FOR counter IN
            SELECT objid FROM pg_depend
             WHERE (classid, refclassid, refobjid, deptype) = ('pg_class'::regclass, 'pg_class'::regclass, relation, 'i')
               AND refobjsubid > 0
        LOOP
            EXECUTE format('GRANT SELECT ON SEQUENCE %s TO coupon_clock_app, coupon_clock_reader', counter);
        END LOOP;
    END LOOP;
    FOR routine IN
        SELECT oid FROM pg_proc WHERE pronamespace = '{schema}'::regnamespace AND proname = ANY ({functions})
    LOOP
        EXECUTE format('ALTER ROUTINE %s OWNER TO coupon_clock_owner', routine);
    END LOOP;
    REVOKE UPDATE, DELETE ON {schema}.event FROM coupon_clock_app;
    REVOKE INSERT, UPDATE, DELETE ON {schema}.schema_migration, {schema}.projection_table FROM coupon_clock_app;
END $$;
