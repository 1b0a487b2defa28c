"""The log of coupon templates, read as an application of the eventsourcing library."""

from collections.abc import Iterator
from functools import singledispatchmethod
from typing import Any

import pytest
from eventsourcing.domain import Aggregate
from eventsourcing.persistence import Tracking
from eventsourcing.projection import Projection, ProjectionRunner

from coupon_clock import persistence
from coupon_clock.domain.errors import CouponTemplateNotFound
from coupon_clock.domain.events import EndReason
from coupon_clock.template_log import ReadOnlyLog, TemplateCreated, TemplateEnded, TemplateLog, project_template
from examples import NOON, OTHER_SHOP, SHOP, a_template, increase, terminate
from waiting import eventually


class ShopNames(persistence.TrackingRecorder):
    """A view of the library's kind: its row and the position are committed together."""

    def __init__(self, database: Any) -> None:
        super().__init__(database)
        with self.transaction() as connection:
            connection.execute(database.sql("CREATE TABLE IF NOT EXISTS {schema}.template (id uuid, name text)"))

    def add(self, event: TemplateCreated, tracking: Tracking) -> None:
        with self.transaction() as connection:
            self.track(connection, tracking)
            statement = self.database.sql("INSERT INTO {schema}.template VALUES (%s, %s)")
            connection.execute(statement, (event.originator_id, event.event.name))

    def remove(self, event: TemplateEnded, tracking: Tracking) -> None:
        with self.transaction() as connection:
            self.track(connection, tracking)
            statement = self.database.sql("DELETE FROM {schema}.template WHERE id = %s")
            connection.execute(statement, (event.originator_id,))

    def names(self) -> set[str]:
        with self.transaction() as connection:
            rows = connection.execute(self.database.sql("SELECT name FROM {schema}.template"))
            return {name for (name,) in rows}


class LiveTemplates(Projection[ShopNames]):
    name = "livetemplates"

    @singledispatchmethod
    def process_event(self, domain_event: object, tracking: Tracking) -> None:
        self.view.insert_tracking(tracking)

    @process_event.register
    def _created(self, domain_event: TemplateCreated, tracking: Tracking) -> None:
        self.view.add(domain_event, tracking)

    @process_event.register
    def _ended(self, domain_event: TemplateEnded, tracking: Tracking) -> None:
        self.view.remove(domain_event, tracking)


@pytest.fixture
def log(app, database_url: str) -> Iterator[TemplateLog]:
    with TemplateLog({"COUPON_CLOCK_DATABASE_URL": database_url}) as log:
        yield log


def test_the_notification_log_has_every_event_of_every_template(app, log):
    template = a_template()
    app.execute_many([template, increase(template.template_id), terminate(template.template_id)])

    notifications = log.notification_log.select(start=1, limit=10)
    assert [each.topic for each in notifications] == [
        "CouponTemplate.Created",
        "CouponTemplate.StockIncreased",
        "CouponTemplate.Ended",
    ]
    events = [log.mapper.to_domain_event(each) for each in notifications]
    assert [event.event for event in events] == [each.event for each in app.history(SHOP, template.template_id)]
    assert {event.originator_id for event in events} == {template.template_id}


def test_a_template_is_there_at_each_version(app, log):
    template = a_template(stock=10)
    app.execute_many([template, increase(template.template_id, by=5)])
    app.clock.set(NOON)
    app.run_due()

    versions = [log.template(SHOP, template.template_id, version) for version in (1, 2, None)]

    assert [version.stock for version in versions] == [10, 15, 15]
    assert versions[2].ended.reason is EndReason.EXPIRED
    assert log.repository.get(template.template_id, version=1, projector_func=project_template) == versions[0]
    with pytest.raises(CouponTemplateNotFound):
        log.template(OTHER_SHOP, template.template_id)


def test_a_projection_of_the_library_follows_typed_events(app, log, database_url):
    kept, gone = a_template(name="kept"), a_template(name="gone")
    app.execute_many([kept, gone])
    env = {"COUPON_CLOCK_DATABASE_URL": database_url, "PERSISTENCE_MODULE": "coupon_clock.persistence"}

    with ProjectionRunner(
        application_class=TemplateLog, projection_class=LiveTemplates, view_class=ShopNames, env=env
    ) as runner:
        eventually(lambda: runner.projection.view.names() == {"kept", "gone"})
        app.execute(terminate(gone.template_id))
        eventually(lambda: runner.projection.view.names() == {"kept"})


def test_nothing_is_written_to_it(app, log):
    with pytest.raises(ReadOnlyLog):
        log.save(Aggregate())
    with pytest.raises(ReadOnlyLog):
        log.events.put([Aggregate().pending_events[0]])
    assert app.end_of_log() == 0
