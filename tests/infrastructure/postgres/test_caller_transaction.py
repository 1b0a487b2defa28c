"""Commands within the caller's own transaction: there with its commit, gone with its rollback, never in between."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import psycopg
import pytest
from psycopg import Connection, IsolationLevel
from psycopg.adapt import AdaptersMap, Loader
from psycopg.pq import Format
from psycopg.rows import dict_row
from sqlalchemy import NullPool, create_engine
from sqlalchemy.orm import Session

from coupon_clock.app import Application, Settings
from coupon_clock.domain.errors import CommandConflict, CouponClockError, CouponTemplateNotFound, InvalidCommand
from coupon_clock.domain.events import Ended
from coupon_clock.infrastructure.postgres.caller_transaction import UnusableTransaction
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable, TimedOut
from coupon_clock.infrastructure.scheduling.alarms import Alarm
from coupon_clock.testing import in_database
from examples import SHOP, ending_in, increase, terminate
from waiting import eventually


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """The caller's, as psycopg opens it, with a table of its own."""
    with psycopg.connect(database_url, autocommit=True) as setting_up:
        setting_up.execute("CREATE TABLE offer (name text)")
    with psycopg.connect(database_url) as connection:
        yield connection


def offers(live: Application) -> int:
    with live.database.connection() as connection:
        ((number,),) = connection.execute("SELECT count(*) FROM public.offer")
    return number


def versions(live: Application, template) -> list[int]:
    try:
        return [envelope.version for envelope in live.history(SHOP, template.template_id)]
    except CouponTemplateNotFound:
        return []


def alarms(live: Application) -> list[Alarm]:
    with live.database.connection() as connection:
        return [Alarm(*row) for row in connection.execute("SELECT stream_id, due_at FROM coupon_clock.alarm")]


# ── happens ──────────────────────────────────────────────────────────────────────────────────────


def test_events_and_alarm_are_there_with_the_callers_commit_and_not_before(live, connection):
    template = ending_in(3600)
    connection.execute("INSERT INTO offer VALUES ('spring')")
    outcome = live.execute(template, connection=connection)

    assert (outcome.version, versions(live, template), alarms(live), offers(live)) == (1, [], [], 0)
    connection.commit()
    assert (versions(live, template), offers(live)) == ([1], 1)
    assert alarms(live) == [Alarm(template.template_id, template.valid_until)]
    assert live.history(SHOP, template.template_id)[0].position == outcome.position


def test_nothing_is_left_of_a_command_when_the_caller_rolls_back(live, connection):
    template = ending_in(3600)
    live.execute(template, connection=connection)
    connection.rollback()

    assert (versions(live, template), alarms(live)) == ([], [])
    live.execute(template)
    assert versions(live, template) == [1]


def test_a_second_command_builds_on_the_first(live, connection):
    template = ending_in(3600, stock=10)
    with connection.transaction():
        live.execute(template, connection=connection)
        live.execute(increase(template.template_id, by=5), connection=connection)
        ended = live.execute(terminate(template.template_id), connection=connection)

    assert versions(live, template) == [1, 2, 3]
    assert isinstance(ended.events[0], Ended)
    assert alarms(live) == []


def test_it_sees_what_others_stored_since_the_transaction_began(live, connection):
    template = ending_in(3600)
    connection.execute("INSERT INTO offer VALUES ('spring')")
    live.execute(template)
    live.execute(increase(template.template_id))

    assert live.execute(increase(template.template_id), connection=connection).version == 3


def test_a_block_of_an_autocommitting_connection_will_do(live, connection):
    connection.autocommit = True
    template = ending_in(3600)
    with connection.transaction():
        live.execute(template, connection=connection)
        assert versions(live, template) == []
    assert versions(live, template) == [1]


def test_a_template_that_ends_soon_is_ended_on_time_after_the_commit(live, connection):
    template = ending_in(1)
    with live.running():
        live.execute(template, connection=connection)
        connection.commit()
        eventually(lambda: versions(live, template) == [1, 2])
    assert not live.maintenance.verify_promise().found_something


# ── is repeated ──────────────────────────────────────────────────────────────────────────────────


def test_a_command_sent_again_after_a_lost_commit_has_its_first_outcome(live, connection):
    template = ending_in(3600)
    first = live.execute(template, connection=connection)
    connection.commit()
    live.execute(increase(template.template_id))

    again = live.execute(template, connection=connection)
    connection.commit()
    assert again == first
    assert versions(live, template) == [1, 2]


# ── is refused ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("command", "refusal"),
    [(ending_in(3600, stock=0), InvalidCommand), (increase(ending_in(1).template_id), CouponTemplateNotFound)],
)
def test_a_refused_command_leaves_the_callers_transaction_as_it_was(live, connection, command, refusal):
    template = ending_in(3600)
    connection.execute("INSERT INTO offer VALUES ('spring')")
    live.execute(template, connection=connection)
    with pytest.raises(refusal):
        live.execute(command, connection=connection)
    connection.commit()

    assert (versions(live, template), offers(live)) == ([1], 1)


def test_an_id_used_for_another_command_is_refused_within_one_transaction_too(live, connection):
    template = ending_in(3600)
    live.execute(template, connection=connection)
    other = increase(template.template_id, command_id=template.command_id)
    with pytest.raises(CommandConflict):
        live.execute(other, connection=connection)


def reader(connection: Connection) -> None:
    connection.isolation_level = IsolationLevel.REPEATABLE_READ


def serial(connection: Connection) -> None:
    connection.isolation_level = IsolationLevel.SERIALIZABLE


def by_hand(connection: Connection) -> None:
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


def without_triggers(connection: Connection) -> None:
    connection.execute("SET session_replication_role = replica")


def without_encoding(connection: Connection) -> None:
    connection.execute("SET client_encoding TO SQL_ASCII")


def as_somebody(connection: Connection, rights: str = "") -> None:
    connection.execute(
        f"CREATE ROLE somebody; REVOKE ALL ON SCHEMA coupon_clock FROM public; {rights}; SET ROLE somebody"
    )


def as_reader(connection: Connection) -> None:
    as_somebody(connection, "GRANT USAGE ON SCHEMA coupon_clock TO somebody")


def without_transaction(connection: Connection) -> None:
    connection.autocommit = True


def failed(connection: Connection) -> None:
    with pytest.raises(psycopg.Error):
        connection.execute("SELECT 1 / 0")


def closed(connection: Connection) -> None:
    connection.close()


@pytest.mark.parametrize(
    ("made_so", "reason"),
    [
        (reader, "isolation is repeatable read, and only READ COMMITTED"),
        (by_hand, "isolation is repeatable read, and only READ COMMITTED"),
        (serial, "isolation is serializable, and only READ COMMITTED"),
        (without_triggers, "session_replication_role is replica"),
        (without_encoding, "client_encoding is SQL_ASCII"),
        (as_somebody, "role may not use the schema coupon_clock"),
        (as_reader, r"role may not write the log \(permission denied"),
        (without_transaction, "begin one, `with connection.transaction"),
        (failed, "it has failed already: roll it back"),
        (closed, "the connection is closed: open a new one"),
    ],
)
def test_a_transaction_that_cannot_hold_a_command_is_refused_with_what_to_do(live, connection, made_so, reason):
    made_so(connection)
    with pytest.raises(UnusableTransaction, match=reason):
        live.execute(ending_in(3600), connection=connection)
    connection.close()


def test_a_role_that_may_not_write_keeps_its_own_rows(live, connection):
    connection.execute("INSERT INTO offer VALUES ('spring')")
    as_somebody(connection)
    with pytest.raises(UnusableTransaction):
        live.execute(ending_in(3600), connection=connection)
    connection.execute("RESET ROLE; DROP OWNED BY somebody; DROP ROLE somebody; GRANT ALL ON SCHEMA public TO public")
    connection.commit()
    assert offers(live) == 1


def test_a_connection_without_a_transaction_has_none_after_a_refusal(live, connection):
    connection.isolation_level = IsolationLevel.SERIALIZABLE
    with pytest.raises(UnusableTransaction):
        live.execute(ending_in(3600), connection=connection)
    connection.isolation_level = IsolationLevel.READ_COMMITTED
    assert live.execute(ending_in(3600), connection=connection).version == 1


def test_what_is_no_psycopg_connection_is_refused_by_its_name(live):
    with pytest.raises(UnusableTransaction, match=r"no psycopg\.Connection, but a str"):
        live.execute(ending_in(3600), connection="postgresql:///")


def test_another_database_is_refused(live, database_url):
    with (
        psycopg.connect(in_database(database_url, "postgres")) as elsewhere,
        pytest.raises(UnusableTransaction, match="no event log in schema coupon_clock"),
    ):
        live.execute(ending_in(3600), connection=elsewhere)


def test_a_transaction_that_may_not_write_is_reported_so_and_goes_on(live, connection):
    connection.read_only = True
    with pytest.raises(DatabaseUnavailable, match="read-only transaction"):
        live.execute(ending_in(3600), connection=connection)
    assert connection.execute("SELECT 1").fetchone() == (1,)


# ── conflicts ────────────────────────────────────────────────────────────────────────────────────


def test_another_command_on_the_stream_waits_for_the_callers_commit_and_is_decided_after_it(live, connection):
    template = ending_in(3600)
    live.execute(template)
    live.execute(increase(template.template_id), connection=connection)
    with ThreadPoolExecutor(1) as thread:
        other = thread.submit(live.execute, increase(template.template_id))
        eventually(lambda: somebody_waits(live))
        connection.commit()
        assert other.result().version == 3


def test_a_caller_that_keeps_others_waiting_too_long_makes_them_fail_and_nothing_else(live, connection):
    template = ending_in(3600)
    live.execute(template)
    live.execute(increase(template.template_id), connection=connection)
    with pytest.raises(TimedOut):
        live.execute(increase(template.template_id))
    live.execute(ending_in(3600))

    connection.commit()
    assert versions(live, template) == [1, 2]


def test_one_caller_does_not_wait_for_another_longer_than_any_command_does(live, connection, database_url):
    template = ending_in(3600)
    live.execute(template)
    live.execute(increase(template.template_id), connection=connection)
    with psycopg.connect(database_url) as second:
        with pytest.raises(TimedOut):
            live.execute(increase(template.template_id), connection=second)
        assert second.execute("SHOW lock_timeout").fetchone() == ("0",)


def somebody_waits(live: Application) -> bool:
    with live.database.connection() as connection:
        waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return connection.execute(waiting).rowcount > 0


def test_a_connection_that_breaks_means_that_nothing_was_stored(live, connection):
    connection.execute("SELECT 1")
    with live.database.connection() as other:
        other.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
    template = ending_in(3600)
    with pytest.raises(DatabaseUnavailable):
        live.execute(template, connection=connection)
    assert versions(live, template) == []


def test_a_connection_that_breaks_within_the_append_means_so_too(live, connection, database_url):
    template = ending_in(3600)
    live.execute(template)
    with psycopg.connect(database_url) as first, ThreadPoolExecutor(1) as thread:
        live.execute(increase(template.template_id), connection=first)
        other = thread.submit(live.execute, increase(template.template_id), connection=connection)
        eventually(lambda: somebody_waits(live))
        first.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        with pytest.raises(DatabaseUnavailable, match="and the transaction with it"):
            other.result()


# ── others ───────────────────────────────────────────────────────────────────────────────────────


def test_followers_wait_for_the_commit_and_miss_nothing(live, connection):
    template, later = ending_in(3600), ending_in(3600)
    seen, stop = [], Event()
    live.execute(template, connection=connection)
    live.execute(later)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(live.follow, "everything", seen.extend, stop=stop)
        eventually(lambda: is_following(live))
        connection.commit()
        eventually(lambda: len(seen) == 2)
        stop.set()
    assert [envelope.stream_id for envelope in seen] == [template.template_id, later.template_id]


def is_following(live: Application) -> bool:
    with live.database.connection() as connection:
        return connection.execute("SELECT FROM coupon_clock.checkpoint WHERE name = 'everything'").rowcount > 0


def test_the_connection_is_left_as_the_caller_likes_it(live, connection):
    connection.execute("SET search_path TO pg_temp, public")
    connection.row_factory, connection.cursor_factory = dict_row, psycopg.ClientCursor
    live.execute(ending_in(3600), connection=connection)
    with pytest.raises(CouponClockError):
        live.execute(ending_in(3600, stock=0), connection=connection)

    assert connection.execute("SHOW search_path").fetchone() == {"search_path": "pg_temp, public"}
    connection.commit()
    assert connection.execute("SHOW search_path").fetchone() == {"search_path": "pg_temp, public"}
    assert (connection.row_factory, connection.cursor_factory) == (dict_row, psycopg.ClientCursor)


def test_the_callers_time_zone_is_not_that_of_the_log(live, connection):
    template = ending_in(3600)
    connection.execute("SET TimeZone TO 'Europe/Berlin'")
    live.execute(template, connection=connection)
    live.execute(terminate(template.template_id), connection=connection)
    connection.commit()

    assert connection.execute("SHOW TimeZone").fetchone() == ("Europe/Berlin",)
    states = connection.execute("SELECT convert_from(state, 'UTF8') FROM coupon_clock.event").fetchall()
    assert all("+0" not in state for (state,) in states)


def test_temporary_tables_of_the_caller_are_not_taken_for_ours(live, connection):
    template = ending_in(3600)
    connection.execute("CREATE TEMP TABLE alarm (LIKE coupon_clock.alarm INCLUDING ALL)")
    connection.execute("CREATE TEMP TABLE event (LIKE coupon_clock.event INCLUDING ALL)")
    live.execute(template, connection=connection)
    connection.commit()
    assert (versions(live, template), len(alarms(live))) == ([1], 1)


class EverythingIsText(Loader):
    def load(self, data) -> str:
        return bytes(data).hex()


class EverythingIsTextInBinary(EverythingIsText):
    format = Format.BINARY


def test_a_connection_that_reads_types_in_its_own_way_will_do(live, connection):
    for name in ("uuid", "timestamptz", "int8", "text"):
        connection.adapters.register_loader(name, EverythingIsText)
        connection.adapters.register_loader(name, EverythingIsTextInBinary)
    assert live.execute(ending_in(3600), connection=connection).version == 1
    assert connection.execute("SELECT 'a'::text").fetchone() == ("61",)


def test_a_connection_whose_adapters_were_made_before_ours_will_do(live, database_url):
    with psycopg.connect(database_url, context=AdaptersMap(types=psycopg.adapters.types)) as bare:
        assert live.execute(ending_in(3600), connection=bare).version == 1


def test_sqlalchemy_commits_what_it_has_begun(live, database_url):
    engine = create_engine(database_url.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)
    in_core, in_session = ending_in(3600), ending_in(3600)
    with engine.begin() as connection:
        live.execute(in_core, connection=connection.connection.driver_connection)
    with Session(engine) as session:
        live.execute(in_session, connection=session.connection().connection.driver_connection)
        session.commit()
    assert versions(live, in_core) == versions(live, in_session) == [1]


def test_the_log_may_be_in_another_schema_than_the_callers(database_url, connection):
    settings = Settings.load(database_url=database_url, database_schema="clock")
    Application.migrate(settings)
    template = ending_in(3600)
    with Application.open(settings) as app:
        app.execute(template, connection=connection)
        connection.execute("INSERT INTO offer VALUES ('spring')")
        connection.commit()
        assert versions(app, template) == [1]
        assert offers(app) == 1


def test_a_template_that_a_caller_holds_across_its_end_makes_no_other_late(live, connection):
    held, others = ending_in(2), [ending_in(2 + n / 100) for n in range(100)]
    live.execute_many([held, *others])
    live.execute(increase(held.template_id), connection=connection)
    with live.running():
        eventually(lambda: ended(live) == len(others))
        assert {late.worst.total_seconds() < 2 for late in live.maintenance.verify_promise().lateness.values()} == {
            True
        }
        connection.commit()
        eventually(lambda: ended(live) == len(others) + 1)
    assert versions(live, held) == [1, 2, 3]


def ended(live: Application) -> int:
    return sum(live.maintenance.verify_promise().ended.values())
