"""The same job done with the eventsourcing library alone: its application, its ProjectionRunner, one row a template."""

from time import perf_counter
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import Tracking
from eventsourcing.postgres import PostgresDatastore, PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from eventsourcing.utils import get_topic
from psycopg.sql import SQL

EVENTS_A_TEMPLATE = 4
A_SAVE = 250

UPSERT = """
INSERT INTO template_row VALUES (%s, %s, %s, %s)
    ON CONFLICT (id) DO UPDATE SET stock = template_row.stock + excluded.stock
"""


class Template(Aggregate):
    @event("Created")
    def __init__(self, shop_number: int, name: str, stock: int) -> None:
        self.shop_number = shop_number
        self.name = name
        self.stock = stock

    @event("StockIncreased")
    def increase(self, by: int) -> None:
        self.stock += by


class Templates(Application[UUID]):
    pass


class TemplateRows(PostgresTrackingRecorder):
    def __init__(self, datastore: PostgresDatastore, **named: Any) -> None:
        super().__init__(datastore, **named)
        self.sql_create_statements.append(
            SQL("CREATE TABLE IF NOT EXISTS template_row (id uuid PRIMARY KEY, shop bigint, name text, stock bigint)")
        )

    def put(self, values: tuple[object, ...], tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(UPSERT, values)


class TemplateProjection(Projection[TemplateRows]):
    topics = (get_topic(Template.Created), get_topic(Template.StockIncreased))  # type: ignore[attr-defined]

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        if isinstance(domain_event, Template.Created):  # type: ignore[attr-defined]
            created = domain_event
            values = (created.originator_id, created.shop_number, created.name, created.stock)
        else:
            values = (domain_event.originator_id, None, None, domain_event.by)
        self.view.put(values, tracking)


def library_rate(url: str, events: int) -> float:
    """Events a second of a ProjectionRunner that reads a log of so many, in a database of its own."""
    environment = environment_of(url)
    last = fill(Templates(environment), events)
    started = perf_counter()
    with ProjectionRunner(
        application_class=Templates,
        projection_class=TemplateProjection,
        view_class=TemplateRows,
        env=environment,
    ) as runner:
        runner.wait(last, timeout=600)
        return events / (perf_counter() - started)


def fill(app: Templates, events: int) -> int:
    last = 0
    for start in range(0, events // EVENTS_A_TEMPLATE, A_SAVE):
        templates = [Template(1, f"Sale {start + n}", 100) for n in range(A_SAVE)]
        for template in templates:
            for _ in range(EVENTS_A_TEMPLATE - 1):
                template.increase(50)
        last = app.save(*templates)[-1].notification.id
    app.close()
    return last


def environment_of(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    (folder,) = parse_qs(parts.query)["host"]
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": parts.path[1:],
        "POSTGRES_HOST": folder,
        "POSTGRES_PORT": "5432",
        "POSTGRES_USER": "postgres",
        "POSTGRES_PASSWORD": "",
    }
