"""Records become templates: the good ones go in, the others are reported, whatever they are."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from uuid import UUID

import msgspec
import psycopg
import pytest
from formats import cells, csv_file, json_lines, some_templates

from coupon_clock.domain.errors import OutcomeUnknown
from coupon_clock.domain.events import Created, ReceiveRule
from coupon_clock.importing.files import Format
from coupon_clock.importing.importer import CHUNK, Tally, import_records, records_of
from coupon_clock.infrastructure.event_store.safety import UnsafeLog
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable
from examples import EVENING, NOON, SHOP, TEMPLATE, a_template, terminate
from waiting import eventually

TWO_LINES = ReceiveRule(limit_per_person=10, usage_instructions="two\nlines")


def imported(app, data, data_format=Format.JSON, after=0):
    return list(import_records(app, records_of(BytesIO(data), data_format), after))


def ids_created(app) -> list[UUID]:
    with app.database.connection() as connection:
        return sorted(i for (i,) in connection.execute("SELECT originator_id FROM coupon_clock.event"))


def test_a_template_from_a_file_is_one_like_any_other(app):
    template = a_template()

    (done,) = imported(app, csv_file(cells(template)), Format.CSV)

    assert done == (1, 0, [], 2)
    (envelope,) = app.history(SHOP, template.template_id)
    assert isinstance(envelope.event, Created)
    assert app.is_usable(SHOP, template.template_id)


def test_both_formats_say_the_same(app):
    templates = [a_template(name=f"{n} ü", receive_rule=TWO_LINES) for n in range(3)]

    imported(app, csv_file(*map(cells, templates)), Format.CSV)

    assert imported(app, json_lines(*templates)) == [(3, 0, [], 3)]
    assert len(ids_created(app)) == 3


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"name": " ", "stock": 0}, "name must have 1 to 100 characters after trimming (got ' '); stock must be 1 to"),
        ({"name": "nothing\0"}, "name must not contain control characters"),
        ({"valid_until": "2026-04-01T00:00:00"}, "valid_until has no time zone"),
        ({"stock": 10**99}, "stock must be 1 to 20,000,000"),
        ({"shop_number": 2**63}, "shop_number must be 1 to"),
        ({"expected_version": 1}, "it expected version 1, the stream is at 0"),
    ],
    ids=str,
)
def test_what_the_rules_refuse_is_reported_in_their_words_and_the_rest_goes_in(app, row, reason):
    before, after = a_template(), a_template()
    rows = [cells(before), cells(a_template()) | row, cells(after)]

    (done,) = imported(app, csv_file(*rows), Format.CSV)

    assert (done.accepted, done.through) == (2, 4)
    assert [line for line, _ in done.refused] == [3]
    assert reason in done.refused[0].reason
    assert ids_created(app) == sorted([before.template_id, after.template_id])


def test_refused_lines_of_every_kind_come_in_the_order_of_the_file(app):
    data = json_lines(a_template(name="")) + b"{\n" + json_lines(a_template(), a_template(name=""))

    assert [line for line, _ in imported(app, data)[0].refused] == [1, 2, 4]


def test_an_id_with_other_content_is_refused_and_with_the_same_content_already_so(app):
    template = a_template(template_id=TEMPLATE)
    other = msgspec.structs.replace(template, name="Other")

    (done,) = imported(app, json_lines(template, template, other))

    assert done.accepted == 2
    assert "conflicts with" in done.refused[0].reason
    assert ids_created(app) == [TEMPLATE]


def test_a_file_imported_again_changes_nothing_also_after_the_ends(app):
    data = json_lines(*(a_template() for _ in range(3)))
    imported(app, data)
    app.clock.set(NOON)

    assert imported(app, data) == [(0, 3, [], 3)]
    assert len(ids_created(app)) == 3


def test_templates_that_are_there_already_count_as_over_once_nobody_can_use_them(app):
    used, ended, gone = a_template(valid_until=EVENING), a_template(), a_template(valid_until=EVENING)
    data = json_lines(used, ended, gone)
    imported(app, data)
    app.execute(terminate(gone.template_id))
    app.clock.set(NOON)

    tally = Tally(0)
    for done in imported(app, data + json_lines(a_template(valid_until=EVENING))):
        tally.add(done)

    assert str(tally) == "2 templates imported, 2 made before and over, 0 lines refused"


def test_chunks_say_up_to_which_line_all_is_done(app):
    data = csv_file(*(cells(a_template(receive_rule=TWO_LINES)) for _ in range(CHUNK + 1)))

    first, second = imported(app, data, Format.CSV)

    assert (first.accepted, first.through) == (CHUNK, 1 + 2 * CHUNK)
    assert (second.accepted, second.through) == (1, 1 + 2 * CHUNK + 2)


@pytest.mark.parametrize(
    ("after", "names"), [(0, "abc"), (1, "abc"), (2, "bc"), (3, "bc"), (4, "c"), (5, ""), (99, "")]
)
def test_what_ends_by_a_line_is_passed_over_and_what_only_begins_there_is_not(app, after, names):
    a, b, c = a_template(name="a"), a_template(name="b", receive_rule=TWO_LINES), a_template(name="c")

    imported(app, csv_file(cells(a), cells(b), cells(c)), Format.CSV, after)

    assert ids_created(app) == sorted(template.template_id for template in (a, b, c) if template.name[0] in names)


def test_a_run_counts_what_it_did_itself(app):
    tally = Tally(2)
    for done in imported(app, json_lines(a_template(), a_template(), a_template(), a_template(name="")), after=2):
        tally.add(done)

    assert str(tally) == "1 templates imported, 1 lines refused"
    assert tally.through == 4


# ── stops ────────────────────────────────────────────────────────────────────────────────────────

HOLD = "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) VALUES (%s, 1, 't', '?')"
OTHERS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
OTHERS_THAT_WAIT = f"{OTHERS} AND wait_event_type = 'Lock'"
SEQUENCE = "coupon_clock.event_notification_id_seq"


@pytest.fixture
def connection(database_url) -> Iterator[psycopg.Connection]:
    """Of somebody else."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def test_without_a_database_nothing_is_refused_but_the_import_stops(live):
    live.database.close()

    with pytest.raises(DatabaseUnavailable):
        imported(live, json_lines(*some_templates(1)))


def test_an_answer_that_got_lost_stops_the_import_and_the_same_again_makes_each_once(live, connection, database_url):
    first, second = some_templates(2)
    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(1) as thread:
        holder.execute(HOLD, (second.template_id,))
        stopped = thread.submit(imported, live, json_lines(first, second))
        eventually(lambda: connection.execute(OTHERS_THAT_WAIT).rowcount)
        with pytest.raises(OutcomeUnknown):
            stopped.result(20)
        holder.rollback()

    assert imported(live, json_lines(first, second)) == [(2, 0, [], 2)]
    assert ids_created(live) == sorted([first.template_id, second.template_id])


def test_a_log_that_became_unsafe_stops_the_import_before_anything_of_the_chunk_goes_in(live, connection):
    live.database._pool.wait()
    connection.execute(f"ALTER SEQUENCE {SEQUENCE} CACHE 20")
    eventually(lambda: connection.execute(f"{OTHERS} AND pid <> pg_backend_pid()").rowcount == 0)

    with pytest.raises(UnsafeLog):
        imported(live, json_lines(*some_templates(2)))
    assert connection.execute("SELECT FROM coupon_clock.event").rowcount == 0
