"""A rebuild makes what the projector would have made, whatever happens meanwhile, and nothing live changes before."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from coupon_clock.projections.coupon_templates import TEMPLATE_ROWS
from coupon_clock.projections.rebuild.catch_up import catch_up
from coupon_clock.projections.rebuild.plan import plan
from coupon_clock.projections.rebuild.rebuild import RebuildOptions, RebuildRunning, ShadowOfOtherFold, SwapBlocked
from coupon_clock.projections.rebuild.replay import ShadowTakenOver, claim, folded_chunk, free, index, write
from coupon_clock.projections.rebuild.run import Pace, Run, only_run
from coupon_clock.projections.rebuild.swap import swap
from coupon_clock.projections.rebuild.workers import replay_together, workers_for
from coupon_clock.projections.registry import PROJECTIONS
from examples import EVENING, SHOP, a_template, increase
from history import append_unreadable, given_a_history, rows, run_sql, value
from rebuild_killed import STEPS
from waiting import eventually

KILLED = Path(__file__).parents[2] / "rebuild_killed.py"
NAMES = [projection.name for projection in PROJECTIONS]
IN_REPLAY = ("claim", "note", "chunk", "replay", "index")


def options(**given: Any) -> RebuildOptions:
    """In several chunks."""
    return RebuildOptions(events_a_chunk=10, **given)


def tables(database_url: str) -> list[str]:
    """Of projections, and what rebuilds make beside them."""
    with psycopg.connect(database_url) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'coupon_clock' ORDER BY 1")
        return [name for (name,) in found if name.startswith(tuple(NAMES))]


def left_behind(database_url: str) -> int:
    """How many chunks and checkpoints of shadows there are."""
    chunks = value(database_url, "SELECT count(*) FROM coupon_clock.rebuild_chunk")
    return chunks + value(database_url, "SELECT count(*) FROM coupon_clock.checkpoint WHERE name LIKE '%shadow'")


STEP = "SELECT step FROM coupon_clock.checkpoint WHERE name = 'coupon_template_shadow'"


def spoil(database_url: str, name: str) -> None:
    """So that a rebuild that changed nothing would be seen."""
    run_sql(database_url, f"UPDATE coupon_clock.{name} SET position = -1")


@pytest.mark.parametrize("name", NAMES)
def test_it_makes_the_rows_that_the_projector_made(app, database_url, name):
    given_a_history(app)
    made = rows(database_url, name)
    spoil(database_url, name)

    done = app.maintenance.rebuild(name, options())

    assert rows(database_url, name) == made
    assert list(app.maintenance.verify()) == []
    assert done.events == done.position == value(database_url, "SELECT count(*) FROM coupon_clock.event")


def test_several_processes_make_the_same_rows(app, database_url):
    given_a_history(app)
    made = rows(database_url)
    spoil(database_url, "coupon_template")

    app.maintenance.rebuild(options=options(jobs=2))

    assert rows(database_url) == made


@pytest.mark.parametrize("name", NAMES)
def test_of_an_empty_log_it_makes_an_empty_table(app, database_url, name):
    assert app.maintenance.rebuild(name, options()).position == 0
    assert rows(database_url, name) == []


def test_the_new_table_has_the_keys_indexes_and_grants_of_the_old_and_leaves_nothing_behind(app, database_url):
    def shape() -> list[Any]:
        with psycopg.connect(database_url) as connection:
            indexes = connection.execute(
                "SELECT indexdef FROM pg_indexes WHERE tablename = 'coupon_template' ORDER BY 1"
            )
            acl = connection.execute("SELECT relacl FROM pg_class WHERE relname = 'coupon_template'")
            columns = connection.execute(
                "SELECT attname, atttypid, attnotnull FROM pg_attribute "
                "WHERE attrelid = 'coupon_clock.coupon_template'::regclass AND attnum > 0 ORDER BY attnum"
            )
            return [indexes.fetchall(), acl.fetchall(), columns.fetchall()]

    run_sql(database_url, "GRANT SELECT ON coupon_clock.coupon_template TO PUBLIC")
    made, before = shape(), tables(database_url)

    app.maintenance.rebuild()

    assert shape() == made
    assert tables(database_url) == before
    assert left_behind(database_url) == 0


def test_the_old_table_can_be_kept(app, database_url):
    given_a_history(app)
    spoil(database_url, "coupon_template")
    for _ in range(2):
        app.maintenance.rebuild(options=options(keep_old=True))

    assert len(rows(database_url, "coupon_template_old")) == len(rows(database_url))
    assert list(app.maintenance.verify()) == []


def test_a_rehearsal_reads_everything_and_writes_nothing(app, database_url):
    given_a_history(app)
    spoil(database_url, "coupon_template")
    before = rows(database_url), tables(database_url)

    counted = {name: app.maintenance.dry_run(name).rows for name in NAMES}

    assert counted == {name: len(rows(database_url, name)) for name in NAMES}
    assert (rows(database_url), tables(database_url)) == before


def test_a_projection_that_was_never_made_is_made_by_a_rebuild(app, database_url):
    given_a_history(app)
    run_sql(database_url, "DROP TABLE coupon_clock.shop_month")
    run_sql(database_url, "DELETE FROM coupon_clock.checkpoint WHERE name = 'shop_month'")

    app.maintenance.rebuild("shop_month")

    assert list(app.maintenance.verify()) == []


# ── while others work ────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def busy(app) -> Iterator[Callable[[], int]]:
    """Commands and projectors run on in the background; called, it returns how many commands were done."""
    stop, done = Event(), []

    def command() -> None:
        while not stop.is_set():
            made = [a_template(valid_until=EVENING) for _ in range(5)]
            app.execute_many(made)
            app.execute_many([increase(template.template_id) for template in made])
            done.append(10)

    with app.running(["projector"]):
        thread = Thread(target=command)
        thread.start()
        yield lambda: sum(done)
        stop.set()
        thread.join()


@pytest.fixture
def planned(app) -> Callable[[], Any]:
    """A rebuild that has decided its position, and holds the right to go on."""

    @contextmanager
    def begun() -> Iterator[Run]:
        with only_run(app.store, TEMPLATE_ROWS, options()) as run:
            assert plan(run).next_step == "replay"
            yield run

    return begun


def build_of(run: Run) -> int:
    ((build,),) = run.execute("SELECT build FROM {schema}.checkpoint WHERE name = %s", run.shadow)
    return build


def test_what_happens_after_the_position_was_decided_is_applied_once(app, planned):
    known, new = a_template(stock=10, valid_until=EVENING), a_template(stock=10, valid_until=EVENING)
    app.execute(known)
    with planned() as run, workers_for(run) as nobody:
        app.execute_many([new, *(increase(template.template_id, by=5) for template in (known, new))])
        replay_together(run, nobody)
        index(run, build_of(run))
        catch_up(run)
        assert swap(run, build_of(run)) is not None

    assert {view.stock for view in app.page(SHOP).views} == {15}
    assert list(app.maintenance.verify_rows("coupon_template")) == []


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_projectors_run_on_and_no_event_is_lost(app, busy, name):
    given = a_template(valid_until=EVENING)
    app.execute(given)
    eventually(lambda: busy() > 50)

    for jobs in (1, 2):
        app.maintenance.rebuild(name, options(jobs=jobs))
        assert list(app.maintenance.verify()) == []

    last = app.execute(increase(given.template_id, by=1))
    assert app.find(SHOP, given.template_id, at_least=last.position).position == last.position
    assert list(app.maintenance.verify()) == []


def test_a_shadow_that_is_behind_the_live_rows_is_not_swapped_in(app, database_url):
    given_a_history(app)
    run_sql(database_url, "CREATE TABLE coupon_clock.coupon_template_shadow (LIKE coupon_clock.coupon_template)")
    run_sql(
        database_url,
        "INSERT INTO coupon_clock.checkpoint (name, kind, position) VALUES ('coupon_template_shadow', 'projection', 1)",
    )
    with only_run(app.store, TEMPLATE_ROWS) as run:
        assert swap(run, build_of(run)) is None

    assert rows(database_url)


def given_another_shape(database_url: str) -> None:
    """As a version of the fold made it whose rows were of another shape."""
    run_sql(database_url, "ALTER TABLE coupon_clock.coupon_template ALTER COLUMN stock TYPE integer")


def test_a_long_reader_holds_up_the_swap_and_no_other_reader(app, database_url):
    given_a_history(app)
    spoil(database_url, "coupon_template")
    given_another_shape(database_url)
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM coupon_clock.coupon_template")
        thread = Thread(target=app.maintenance.rebuild)
        thread.start()
        eventually(lambda: value(database_url, STEP) == "catch up")
        for _ in range(50):
            assert app.page(SHOP).views[0].position == -1
        assert thread.is_alive()

    thread.join()
    assert list(app.maintenance.verify()) == []


def test_readers_that_never_end_are_named_and_what_was_done_is_kept(app, database_url):
    given_a_history(app)
    spoil(database_url, "coupon_template")
    given_another_shape(database_url)
    with psycopg.connect(database_url) as reader:
        (pid,) = reader.execute("SELECT pg_backend_pid() FROM coupon_clock.coupon_template").fetchone()
        with pytest.raises(SwapBlocked, match=str(pid)):
            app.maintenance.rebuild(options=options(swap_patience_s=0))
    assert rows(database_url)[0][-1] == -1

    assert app.maintenance.rebuild(options=options(resume=True)).events == 0
    assert list(app.maintenance.verify()) == []


def test_a_second_rebuild_is_reported_who_runs_the_first(app):
    with only_run(app.store, TEMPLATE_ROWS, options(takeover_s=1)):
        with pytest.raises(RebuildRunning, match=f"process {os.getpid()}"):
            app.maintenance.rebuild()
        app.maintenance.rebuild("shop_month")
    app.maintenance.rebuild()


# ── interrupted ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("step", "name"),
    [(step, name) for step in STEPS for name in NAMES if name == "coupon_template" or step not in IN_REPLAY],
)
def test_killed_after_any_step_nothing_live_changed_and_it_can_be_gone_on_with(app, database_url, step, name):
    given_a_history(app)
    made = rows(database_url, name)
    spoil(database_url, name)

    died = subprocess.run(
        [sys.executable, str(KILLED), step, name],
        env=os.environ | {"COUPON_CLOCK_DATABASE_URL": database_url},
        check=False,
    )

    assert died.returncode == -signal.SIGKILL
    assert {row[-1] for row in rows(database_url, name)} == {-1} or step == "swap"
    app.maintenance.rebuild(name, options(resume=True, takeover_s=0.3))
    assert rows(database_url, name) == made
    assert tables(database_url) == NAMES
    assert left_behind(database_url) == 0


def test_a_worker_that_is_killed_leaves_its_chunks_to_the_others(app, database_url, planned):
    given_a_history(app)
    made = rows(database_url)
    with planned() as run:
        assert claim(run, uuid4())

    app.maintenance.rebuild(options=options(resume=True))

    assert rows(database_url) == made


def test_one_that_was_taken_over_writes_nothing_more(app, database_url, planned):
    given_a_history(app)
    with planned() as run:
        claimed = claim(run, asleep := uuid4())
        free(run)
        with pytest.raises(ShadowTakenOver):
            write(run, claimed, asleep, folded_chunk(run, claimed))

    assert rows(database_url, TEMPLATE_ROWS.shadow) == []


def test_chunks_of_another_shadow_are_left_alone(app, database_url):
    given_a_history(app)
    run_sql(
        database_url,
        "INSERT INTO coupon_clock.rebuild_chunk (shadow, through, planned) VALUES ('other', gen_random_uuid(), 1)",
    )

    app.maintenance.rebuild(options=options())

    assert value(database_url, "SELECT count(*) FROM coupon_clock.rebuild_chunk WHERE claimed_by IS NULL") == 1
    assert list(app.maintenance.verify()) == []


def test_what_another_fold_version_began_is_not_gone_on_with(app, database_url):
    given_a_history(app)
    given_another_shape(database_url)
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT FROM coupon_clock.coupon_template")
        with pytest.raises(SwapBlocked):
            app.maintenance.rebuild(options=options(swap_patience_s=0))
    run_sql(database_url, "UPDATE coupon_clock.checkpoint SET fold_version = 7 WHERE name = 'coupon_template_shadow'")

    with pytest.raises(ShadowOfOtherFold, match="without --resume"):
        app.maintenance.rebuild(options=options(resume=True))

    app.maintenance.rebuild()
    assert list(app.maintenance.verify()) == []


def test_resuming_where_nothing_was_begun_begins(app):
    given_a_history(app)
    assert app.maintenance.rebuild(options=options(resume=True)).events > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_that_cannot_be_read_is_quarantined_and_the_rest_rebuilt(app, database_url, name):
    given_a_history(app)
    made = rows(database_url, name)
    append_unreadable(database_url)
    spoil(database_url, name)

    app.maintenance.rebuild(name, options(jobs=2))

    assert rows(database_url, name) == made
    (quarantined,) = app.maintenance.quarantined()
    assert quarantined.projection == name
    assert "CouponTemplate.Folded" in quarantined.reason


def test_ctrl_c_leaves_the_live_rows_and_a_shadow_to_go_on_with(app, database_url):
    given_a_history(app, 40)
    made = rows(database_url)
    spoil(database_url, "coupon_template")
    command = [sys.executable, "-m", "coupon_clock.cli", "rebuild"]
    environment = os.environ | {"COUPON_CLOCK_DATABASE_URL": database_url}
    process = subprocess.Popen(
        [*command, "--throttle", "1"], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    eventually(lambda: value(database_url, STEP) == "replay")
    eventually(lambda: value(database_url, "SELECT sum(events) FROM coupon_clock.rebuild_chunk"))

    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "--resume" in said
    assert "Traceback" not in said
    assert rows(database_url)[0][-1] == -1
    subprocess.run([*command, "--resume"], env=environment, check=True, capture_output=True)
    assert rows(database_url) == made


def test_the_pace_is_kept_by_waiting():
    waits: list[float] = []
    pace = Pace(100, waits.append)
    pace.passed(50)
    pace.passed(50)
    Pace(None, waits.append).passed(1_000_000)

    assert [round(wait, 1) for wait in waits] == [0.5, 1.0]
