"""An event that a projection cannot take in costs the row of its own stream, and nothing else."""

import json
from uuid import UUID, uuid4

import pytest
from msgspec.structs import replace

from command_line import coupon_clock
from coupon_clock.domain.errors import CouponTemplateNotFound, InvalidArgument
from coupon_clock.infrastructure.event_store.store import UnreadableEvent
from coupon_clock.projections.coupon_templates import TEMPLATE_ROWS
from coupon_clock.projections.engine import quarantine
from coupon_clock.projections.engine.projector import Projector
from coupon_clock.projections.shop_months import SHOP_MONTHS
from coupon_clock.testing import TestApplication
from examples import SHOP, a_template, increase
from history import rows, run_sql, value

INCREASED = '{"type":"CouponTemplate.StockIncreased","shop_number":1,"by":%s}'
STATES = {
    "a tag that nobody knows": b'{"type":"CouponTemplate.Folded"}',
    "no JSON": b"not JSON",
    "no UTF-8": b"\xff\xfe",
    "deeply nested": b"[" * 100_000,
    "a field of another type": (INCREASED % '"five"').encode(),
    "nothing": b"",
}


def append(database_url: str, stream_id: UUID, version: int, state: bytes | str) -> int:
    stored = state if isinstance(state, bytes) else state.encode()
    run_sql(
        database_url,
        "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) VALUES (%s, %s, 't', %s)",
        stream_id,
        version,
        stored,
    )
    return int(value(database_url, "SELECT max(notification_id) FROM coupon_clock.event"))


def catch_up(app: TestApplication, *projections) -> None:
    for projection in projections or (TEMPLATE_ROWS, SHOP_MONTHS):
        projector = Projector(app.store, projection, batch=5)
        while projector.run_once():
            pass
        projector.release()


def quarantined(app: TestApplication) -> list[tuple[str, UUID, int]]:
    return [(each.projection, each.stream_id, each.version) for each in app.maintenance.quarantined()]


@pytest.mark.parametrize("state", STATES.values(), ids=STATES.keys())
def test_whatever_cannot_be_read_stops_its_own_stream_and_no_other(app, database_url, state):
    bad, good = a_template(stock=10), a_template(stock=10)
    app.execute_many([bad, good, increase(bad.template_id, by=1)])
    append(database_url, bad.template_id, 3, state)
    append(database_url, bad.template_id, 4, INCREASED % 5)
    app.execute(increase(good.template_id, by=5))
    catch_up(app)

    assert quarantined(app) == [("coupon_template", bad.template_id, 3), ("shop_month", bad.template_id, 3)]
    shown, other = app.find(SHOP, bad.template_id), app.find(SHOP, good.template_id)
    assert (shown.stock, shown.quarantined) == (11, True), "as it was before"
    assert (other.stock, other.quarantined) == (15, False)
    assert [view.quarantined for view in sorted(app.page(SHOP).views, key=lambda view: view.stock)] == [True, False]


def test_a_stream_whose_first_event_cannot_be_read_has_no_row(app, database_url):
    stream_id = uuid4()
    append(database_url, stream_id, 1, "?")
    append(database_url, stream_id, 2, INCREASED % 5)
    catch_up(app, TEMPLATE_ROWS)
    assert quarantined(app) == [("coupon_template", stream_id, 1)]
    with pytest.raises(CouponTemplateNotFound):
        app.find(SHOP, stream_id)


def test_a_stream_that_cannot_be_folded_is_quarantined_with_the_event(app, database_url):
    stream_id = uuid4()
    append(database_url, stream_id, 1, INCREASED % 5)
    app.execute(a_template())
    catch_up(app)
    (one, *_) = app.maintenance.quarantined()
    assert (one.stream_id, one.version, one.position) == (stream_id, 1, 1)
    assert "a stream begins with Created" in one.reason


def test_a_row_that_postgresql_does_not_take_costs_no_other(app, database_url):
    bad, good = a_template(stock=10), a_template(stock=10)
    app.execute_many([bad, good])
    catch_up(app)
    append(database_url, bad.template_id, 2, INCREASED % (2**63 - 1))
    app.execute(increase(good.template_id, by=5))
    catch_up(app)

    assert ("coupon_template", bad.template_id, 2) in quarantined(app)
    assert (app.find(SHOP, bad.template_id).stock, app.find(SHOP, good.template_id).stock) == (10, 15)
    app.maintenance.rebuild()
    assert ("coupon_template", bad.template_id, 2) in quarantined(app)
    assert app.find(SHOP, good.template_id).stock == 15


def test_later_events_of_a_quarantined_stream_are_left_alone_in_later_batches_too(app, database_url):
    bad = a_template(stock=10)
    app.execute(bad)
    append(database_url, bad.template_id, 2, "?")
    catch_up(app, TEMPLATE_ROWS)
    append(database_url, bad.template_id, 3, INCREASED % 5)
    catch_up(app, TEMPLATE_ROWS)
    assert app.find(SHOP, bad.template_id).stock == 10


def readable_again(database_url: str, stream_id: UUID) -> None:
    """As code would that knows the event: here the event becomes one that is known."""
    run_sql(database_url, "ALTER TABLE coupon_clock.event DISABLE TRIGGER refuse_change")
    run_sql(
        database_url,
        "UPDATE coupon_clock.event SET state = %s WHERE originator_id = %s AND originator_version = 2",
        (INCREASED % 7).encode(),
        stream_id,
    )
    run_sql(database_url, "ALTER TABLE coupon_clock.event ENABLE TRIGGER refuse_change")


@pytest.fixture
def left_alone(app, database_url) -> UUID:
    """A template of 10 in stock, with an unreadable event and an increase by 5 after it."""
    bad = a_template(stock=10)
    app.execute(bad)
    append(database_url, bad.template_id, 2, "?")
    append(database_url, bad.template_id, 3, INCREASED % 5)
    catch_up(app)
    return bad.template_id


def test_once_the_event_can_be_read_a_projector_that_starts_makes_the_row_anew(app, database_url, left_alone):
    readable_again(database_url, left_alone)
    catch_up(app)
    shown = app.find(SHOP, left_alone)
    assert (shown.stock, shown.version, shown.quarantined) == (22, 3, False)
    assert quarantined(app) == [("shop_month", left_alone, 2)], "it gathers streams, and needs a rebuild"

    assert [each.column for each in app.maintenance.verify_rows()] == ["left out", "stock_issued"]
    app.maintenance.rebuild("shop_month")
    assert quarantined(app) == []
    assert list(app.maintenance.verify_rows()) == []


def test_operators_list_and_retry(app, database_url, left_alone):
    listed = coupon_clock("quarantine", "list", "--json", database_url=database_url)
    assert listed.returncode == 1
    assert [json.loads(line)["version"] for line in listed.stdout.splitlines()] == [2, 2]

    retried = coupon_clock("quarantine", "retry", "--stream", str(left_alone), database_url=database_url)
    assert (retried.returncode, str(left_alone) in retried.stdout) == (1, True)
    readable_again(database_url, left_alone)
    retried = coupon_clock("quarantine", "retry", database_url=database_url)
    assert retried.stdout.startswith("shop_month")
    assert app.find(SHOP, left_alone).stock == 22


def test_one_row_is_rebuilt_by_itself(app, database_url, left_alone):
    with pytest.raises(UnreadableEvent):
        app.maintenance.rebuild_row("coupon_template", left_alone)
    with pytest.raises(InvalidArgument, match="gathers many streams"):
        app.maintenance.rebuild_row("shop_month", left_alone)

    readable_again(database_url, left_alone)
    run_sql(database_url, "UPDATE coupon_clock.coupon_template SET stock = 0, name = 'spoiled'")
    done = coupon_clock("rebuild", "coupon_template", "--stream", str(left_alone), database_url=database_url)
    assert done.returncode == 0, done.stderr
    assert (app.find(SHOP, left_alone).stock, app.find(SHOP, left_alone).name) == (22, "Spring sale")


def test_a_row_of_no_stream_goes_when_it_is_rebuilt(app, database_url):
    app.execute(a_template())
    catch_up(app)
    run_sql(database_url, "UPDATE coupon_clock.coupon_template SET template_id = gen_random_uuid()")
    stray = value(database_url, "SELECT template_id FROM coupon_clock.coupon_template")
    app.maintenance.rebuild_row("coupon_template", stray)
    assert rows(database_url) == []


def test_verify_and_repairs_name_what_they_leave_out_and_go_on(app, database_url, left_alone):
    good = a_template()
    app.execute(good)
    catch_up(app)
    run_sql(database_url, "UPDATE coupon_clock.coupon_template SET stock = 0 WHERE template_id = %s", good.template_id)
    run_sql(database_url, "DELETE FROM coupon_clock.alarm WHERE stream_id = %s", good.template_id)

    found = {(each.table, each.id, each.column) for each in app.maintenance.verify()}
    assert found == {
        ("coupon_template", left_alone, "left out"),
        ("shop_month", left_alone, "left out"),
        ("alarm", left_alone, "left out"),
        ("coupon_template", good.template_id, "stock"),
        ("alarm", good.template_id, "due_at"),
    }
    report = app.maintenance.verify_promise()
    assert ([each.stream_id for each in report.left_out], report.found_something) == ([left_alone], True)
    assert app.maintenance.repair_alarms() == 1
    for arguments in (["verify"], ["verify", "rows"], ["verify", "alarms"], ["verify", "promise"]):
        assert coupon_clock(*arguments, database_url=database_url).returncode == 1
    assert coupon_clock("rebuild", "alarm", database_url=database_url).returncode == 0
    assert app.maintenance.dry_run().failed == 1


def test_many_unreadable_events_cost_one_entry_a_stream_and_one_line_a_batch(app, database_url, caplog):
    run_sql(
        database_url,
        "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) "
        "SELECT id, version, 't', '?' FROM (SELECT gen_random_uuid() AS id FROM generate_series(1, 300)) AS streams, "
        "generate_series(1, 20) AS version",
    )
    template = a_template()
    app.execute(template)
    projector = Projector(app.store, TEMPLATE_ROWS)
    while projector.run_once():
        pass
    assert len(app.maintenance.quarantined()) == 300
    assert app.find(SHOP, template.template_id).stock == 100


def test_an_error_of_all_rows_is_no_fault_of_any_stream(app, database_url):
    """Such as a column that other code added."""
    app.execute_many([a_template() for _ in range(3)])
    run_sql(database_url, "ALTER TABLE coupon_clock.coupon_template ADD CONSTRAINT never CHECK (stock < 0)")
    with pytest.raises(quarantine.UNSTORABLE):
        Projector(app.store, TEMPLATE_ROWS).run_once()
    assert quarantined(app) == []


def test_a_key_that_cannot_be_told_leaves_out_the_event_alone(app):
    def key(envelope):
        if envelope.version == 2:
            raise KeyError("no such shop")
        return SHOP_MONTHS.key(envelope)

    template = a_template(stock=10)
    app.execute_many([template, increase(template.template_id, by=1), increase(template.template_id, by=2)])
    projector = Projector(app.store, replace(SHOP_MONTHS, key=key))
    projector.run_once()
    (month,) = app.shop_months(SHOP).months
    assert month.stock_issued == 12
    assert quarantined(app) == [("shop_month", template.template_id, 2)]
