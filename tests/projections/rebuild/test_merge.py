"""What others hang on the read model: there after a rebuild, or named before one that would lose it."""

from collections.abc import Iterator
from threading import Thread
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from coupon_clock.app import Application, Settings
from coupon_clock.projections.rebuild.go_live import SwapBlocked
from coupon_clock.projections.rebuild.rebuild import ForeignObjects, RebuildOptions, RowsHidden
from examples import EVENING, SHOP, a_template, increase
from waiting import eventually

TABLE = "coupon_clock.coupon_template"

# What it takes to make each, and the words that name it.
OBJECTS = {
    "view": (f"CREATE VIEW public.mine AS SELECT name FROM {TABLE}", "view mine"),
    "materialized view": (
        f"CREATE MATERIALIZED VIEW public.mine AS SELECT name FROM {TABLE}",
        "materialized view mine",
    ),
    "foreign key": (
        f"CREATE TABLE public.mine (template_id uuid REFERENCES {TABLE} ON DELETE CASCADE)",
        "constraint mine_template_id_fkey on table mine",
    ),
    "check": (f"ALTER TABLE {TABLE} ADD CONSTRAINT mine CHECK (stock > 0)", "constraint mine on table"),
    "unique": (f"ALTER TABLE {TABLE} ADD CONSTRAINT mine UNIQUE (template_id, name)", "constraint mine on table"),
    "index": (f"CREATE INDEX mine ON {TABLE} (lower(name))", "index coupon_clock.mine"),
    "trigger": (
        "CREATE FUNCTION public.mine() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
        f"CREATE TRIGGER mine AFTER UPDATE ON {TABLE} FOR EACH ROW EXECUTE FUNCTION public.mine()",
        "trigger mine on table",
    ),
    "rule": (f"CREATE RULE mine AS ON DELETE TO {TABLE} WHERE false DO INSTEAD NOTHING", "rule mine on table"),
    "policy": (f"CREATE POLICY mine ON {TABLE} USING (shop_number = 1)", "policy mine on table"),
    "row security": (f"ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY", "row security"),
    "column grant": (f"GRANT SELECT (name), UPDATE (stock) ON {TABLE} TO PUBLIC", "privileges on column name"),
    "publication": (f"CREATE PUBLICATION mine FOR TABLE {TABLE}", "publication of table"),
    "replica identity": (f"ALTER TABLE {TABLE} REPLICA IDENTITY FULL", "replica identity"),
    "storage parameter": (f"ALTER TABLE {TABLE} SET (fillfactor = 50)", "storage parameter fillfactor=50"),
    "comment": (f"COMMENT ON TABLE {TABLE} IS 'mine'", "comment on the table"),
    "column comment": (f"COMMENT ON COLUMN {TABLE}.name IS 'mine'", "comment on column name"),
    "statistics": (f"CREATE STATISTICS public.mine ON shop_number, stock FROM {TABLE}", "statistics object mine"),
    "statistics target": (
        f"ALTER TABLE {TABLE} ALTER COLUMN name SET STATISTICS 500",
        "statistics target of column name",
    ),
    "default": (f"ALTER TABLE {TABLE} ALTER COLUMN stock SET DEFAULT 7", "default value for column stock"),
    "child table": (f"CREATE TABLE public.mine () INHERITS ({TABLE})", "table mine"),
    "function": (
        f"CREATE FUNCTION public.mine() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM {TABLE}; END",
        "function mine()",
    ),
    "own column": (f"ALTER TABLE {TABLE} ADD COLUMN mine text DEFAULT 'x'", "default value for column mine"),
}
ALL = pytest.mark.parametrize(("made_by", "named"), OBJECTS.values(), ids=OBJECTS)


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def filled(app: Application) -> Application:
    with app.running(["projector"]):
        app.execute_many([a_template(valid_until=EVENING) for _ in range(20)])
        app.page(SHOP, at_least=app.end_of_log())
    return app


def what_hangs_on_it(connection: psycopg.Connection[Any]) -> list[Any]:
    statements = (
        "SELECT pg_describe_object(classid, objid, objsubid) FROM pg_depend "
        f"WHERE refobjid = '{TABLE}'::regclass ORDER BY 1",
        "SELECT relowner, relacl, relrowsecurity, relforcerowsecurity, reloptions, relreplident, oid "
        f"FROM pg_class WHERE oid = '{TABLE}'::regclass",
        "SELECT attname, attacl, attstattarget, atthasdef "
        f"FROM pg_attribute WHERE attrelid = '{TABLE}'::regclass AND attnum > 0 ORDER BY attnum",
        f"SELECT objsubid, description FROM pg_description WHERE objoid = '{TABLE}'::regclass ORDER BY 1",
    )
    return [connection.execute(statement).fetchall() for statement in statements]


@ALL
def test_what_hangs_on_rows_of_the_same_shape_is_there_after_a_rebuild(filled, connection, made_by, named):
    connection.execute(made_by)
    connection.execute(f"UPDATE {TABLE} SET position = -1")
    before = what_hangs_on_it(connection)

    filled.maintenance.rebuild()

    assert what_hangs_on_it(connection) == before
    assert list(filled.maintenance.verify_rows("coupon_template")) == []


@ALL
def test_what_hangs_on_rows_of_another_shape_is_named_before_anything_is_done(filled, connection, made_by, named):
    connection.execute(f"ALTER TABLE {TABLE} DROP COLUMN position")
    connection.execute(made_by)
    before = what_hangs_on_it(connection)

    with pytest.raises(ForeignObjects) as refused:
        filled.maintenance.rebuild()

    assert named in str(refused.value)
    assert what_hangs_on_it(connection) == before
    assert connection.execute("SELECT FROM pg_tables WHERE tablename ~ 'shadow|outgoing'").fetchall() == []


def test_with_nothing_foreign_on_it_rows_of_another_shape_are_swapped_and_owner_and_grants_carried_over(
    filled, connection
):
    connection.execute("DROP ROLE IF EXISTS keeper; CREATE ROLE keeper")
    try:
        connection.execute(f"ALTER TABLE {TABLE} DROP COLUMN position; ALTER TABLE {TABLE} OWNER TO keeper")
        connection.execute(f"GRANT SELECT ON {TABLE} TO PUBLIC")
        kept = f"SELECT relowner::regrole::text, relacl::text FROM pg_class WHERE oid = '{TABLE}'::regclass"
        before = connection.execute(kept).fetchone()
        filled.maintenance.rebuild()
        assert connection.execute(kept).fetchone() == before
        assert list(filled.maintenance.verify_rows("coupon_template")) == []
    finally:
        connection.execute("DROP OWNED BY keeper CASCADE; DROP ROLE keeper")


def test_only_rows_that_differ_are_written(filled, connection):
    some = f"(SELECT template_id FROM {TABLE} ORDER BY template_id LIMIT %s)"
    connection.execute(f"UPDATE {TABLE} SET position = -1 WHERE template_id IN {some}", (5,))
    connection.execute(f"DELETE FROM {TABLE} WHERE template_id IN {some}", (2,))
    connection.execute(f"CREATE TEMP TABLE surplus AS SELECT * FROM {TABLE} LIMIT 1")
    connection.execute("UPDATE surplus SET template_id = gen_random_uuid()")
    connection.execute(f"INSERT INTO {TABLE} SELECT * FROM surplus")
    right = dict(connection.execute(f"SELECT template_id, xmin::text FROM {TABLE} WHERE position > 0").fetchall())

    filled.maintenance.rebuild()

    after = dict(connection.execute(f"SELECT template_id, xmin::text FROM {TABLE}").fetchall())
    assert len(after) == 20
    assert len(after.items() & right.items()) == 15
    assert list(filled.maintenance.verify_rows("coupon_template")) == []


def test_readers_and_projectors_go_on_while_rows_are_merged(filled, connection):
    with psycopg.connect(connection.info.dsn) as reader:
        reader.execute(f"SELECT count(*) FROM {TABLE}")
        with filled.running(["projector"]):
            filled.maintenance.rebuild()
            done = filled.execute(a_template(valid_until=EVENING))
            filled.page(SHOP, at_least=done.position)
    assert list(filled.maintenance.verify()) == []


def test_somebody_who_holds_a_row_for_too_long_is_named_and_the_rebuild_can_be_gone_on_with(filled, connection):
    connection.execute(f"UPDATE {TABLE} SET position = -1")
    with psycopg.connect(connection.info.dsn) as holder:
        holder.execute(f"SELECT FROM {TABLE} LIMIT 1 FOR UPDATE")
        with pytest.raises(SwapBlocked, match=str(holder.info.backend_pid)):
            filled.maintenance.rebuild(options=RebuildOptions(swap_patience_s=0))
    assert filled.maintenance.rebuild(options=RebuildOptions(resume=True)).events == 0
    assert list(filled.maintenance.verify_rows("coupon_template")) == []


HELD = f"""
CREATE ROLE held LOGIN;
GRANT ALL ON SCHEMA coupon_clock TO held;
GRANT ALL ON ALL TABLES    IN SCHEMA coupon_clock TO held;
GRANT ALL ON ALL SEQUENCES IN SCHEMA coupon_clock TO held;
ALTER TABLE {TABLE} OWNER TO held;
ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {TABLE} FORCE ROW LEVEL SECURITY;
"""


def test_row_security_that_hides_rows_from_the_rebuilding_role_is_refused_before_anything_is_done(filled, connection):
    connection.execute("DROP ROLE IF EXISTS held")
    connection.execute(HELD)
    settings = Settings.load(database_url=make_conninfo(connection.info.dsn, user="held"))
    try:
        with Application.open(settings) as held, pytest.raises(RowsHidden, match="BYPASSRLS"):
            held.maintenance.rebuild()
    finally:
        connection.execute(f"ALTER TABLE {TABLE} OWNER TO postgres; DROP OWNED BY held CASCADE; DROP ROLE held")


def test_an_index_of_ours_that_is_missing_is_made_anew(filled, connection):
    connection.execute("DROP INDEX coupon_clock.coupon_template_shop_end_idx")
    filled.maintenance.rebuild()
    found = connection.execute("SELECT FROM pg_indexes WHERE indexname = 'coupon_template_shop_end_idx'")
    assert found.rowcount == 1


def test_the_old_rows_are_kept_where_that_is_asked_for(filled, connection):
    connection.execute(f"UPDATE {TABLE} SET position = -1")
    filled.maintenance.rebuild(options=RebuildOptions(keep_old=True))
    assert connection.execute("SELECT DISTINCT position FROM coupon_clock.coupon_template_old").fetchall() == [(-1,)]
    filled.maintenance.rebuild(options=RebuildOptions(keep_old=True))


def test_a_rebuild_beside_writers_loses_nothing(filled):
    stop: list[bool] = []

    def write() -> None:
        while not stop:
            filled.execute(increase(filled.execute(a_template(valid_until=EVENING)).template_id))

    thread = Thread(target=write)
    with filled.running(["projector"]):
        thread.start()
        for name in ("coupon_template", "shop_month"):
            filled.maintenance.rebuild(name)
        stop.append(True)
        thread.join()
        eventually(lambda: list(filled.maintenance.verify()) == [], within=20)
