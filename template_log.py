"""The log of coupon templates as an application of the eventsourcing library: its notification log, a template at a
version, its projections. Only to be read: commands are the Application's (app.py).
"""

import os
from collections.abc import Iterable
from functools import reduce
from typing import Any, ClassVar, NoReturn
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.persistence import Mapper, StoredEvent
from eventsourcing.utils import Environment, EnvType
from msgspec import Struct

from coupon_clock.domain.coupon_template import CouponTemplate, evolve, existing
from coupon_clock.domain.errors import CouponClockError
from coupon_clock.domain.events import Created, Ended, Event, StockIncreased, ValidityChanged
from coupon_clock.domain.events import StoredEvent as StoredShape
from coupon_clock.infrastructure.event_store.store import EventFormat

__all__ = [
    "ReadOnlyLog",
    "TemplateCreated",
    "TemplateEnded",
    "TemplateLog",
    "TemplateStockIncreased",
    "TemplateValidityChanged",
]


class ReadOnlyLog(CouponClockError):
    """The log of coupon templates is only read here: send commands to a coupon_clock.Application."""


class TemplateCreated(Struct, frozen=True):
    """The event of a template, with what the library knows of it."""

    originator_id: UUID
    originator_version: int
    event: Created


class TemplateStockIncreased(Struct, frozen=True):
    originator_id: UUID
    originator_version: int
    event: StockIncreased


class TemplateValidityChanged(Struct, frozen=True):
    originator_id: UUID
    originator_version: int
    event: ValidityChanged


class TemplateEnded(Struct, frozen=True):
    originator_id: UUID
    originator_version: int
    event: Ended


TemplateEvent = TemplateCreated | TemplateStockIncreased | TemplateValidityChanged | TemplateEnded

KINDS: dict[type[Event], type[TemplateEvent]] = {
    Created: TemplateCreated,
    StockIncreased: TemplateStockIncreased,
    ValidityChanged: TemplateValidityChanged,
    Ended: TemplateEnded,
}


class TemplateMapper(Mapper[UUID]):
    """Reads what this project stores. Earlier shapes are upcast, as everywhere (docs/events.md)."""

    FORMAT: ClassVar[EventFormat[Event]] = EventFormat(StoredShape)

    def to_stored_event(self, domain_event: object) -> NoReturn:
        raise ReadOnlyLog

    def to_domain_event(self, stored_event: StoredEvent) -> Any:
        """Returns a TemplateEvent. Raises msgspec.MsgspecError, UnicodeDecodeError."""
        event = self.FORMAT.decode(bytes(stored_event.state))
        return KINDS[type(event)](stored_event.originator_id, stored_event.originator_version, event)  # type: ignore[arg-type]


class TemplateLog(Application[UUID]):
    """`with TemplateLog() as log`: the log that COUPON_CLOCK_DATABASE_URL and COUPON_CLOCK_DATABASE_SCHEMA name."""

    env: ClassVar[dict[str, str]] = {"PERSISTENCE_MODULE": "coupon_clock.persistence", "CREATE_TABLE": "no"}

    def construct_env(self, name: str, env: EnvType | None = None) -> Environment:
        schema = (env or os.environ).get("COUPON_CLOCK_DATABASE_SCHEMA") or "coupon_clock"
        return super().construct_env(name, {"POSTGRES_SCHEMA": schema} | dict(env or {}))

    def construct_mapper(self) -> Mapper[UUID]:
        return TemplateMapper(self.construct_transcoder())

    def template(self, shop_number: int, template_id: UUID, version: int | None = None) -> CouponTemplate:
        """Returns the template as it was after its event of that version, by default after the last.

        Raises CouponTemplateNotFound.
        """
        events: Iterable[Any] = self.events.get(template_id, lte=version)
        return existing(project_template(None, events), template_id, shop_number)

    def save(self, *_: object, **__: object) -> NoReturn:
        raise ReadOnlyLog


def project_template(template: CouponTemplate | None, events: Iterable[TemplateEvent]) -> CouponTemplate | None:
    """The library's projector function of templates."""
    return reduce(evolve, (each.event for each in events), template)
