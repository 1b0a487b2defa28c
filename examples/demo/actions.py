"""The scenario on a running application. The stage only sends commands and messages; what ends, ends by itself."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID, uuid4

from msgspec import Struct

from coupon_clock.app import Application, ChangeValidity, Envelope, TerminateCouponTemplate
from coupon_clock.domain.commands import CreateCouponTemplate
from coupon_clock.domain.errors import CouponClockError
from coupon_clock.domain.events import Ended, Event
from coupon_clock.infrastructure.messaging.broker import Broker
from coupon_clock.infrastructure.messaging.messages import ExpiryDue
from scenario import LEAD, MoveEnd, Planned, SendAgain, Terminate, Turn, creation

PATIENCE = timedelta(seconds=4)
"""How much later than planned a message may be sent before the demo gives up."""

Twist = Literal["terminated", "moved later", "moved earlier", "sent twice"]


class MessageNotSent(CouponClockError):
    """The message for "{name}" was not given to the broker within {seconds:.0f} s: is the broker working?"""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(name, seconds)
        self.name, self.seconds = name, seconds


class OnStage(Struct):
    """A template as the stage last left it. `turn`: still to come; `twist`: what came of it."""

    created: CreateCouponTemplate
    ends_at: datetime
    turn: Turn | None
    twist: Twist | None = None

    @property
    def template_id(self) -> UUID:
        return self.created.template_id


class Stage:
    """`start`: the aware time from which the scenario counts."""

    def __init__(self, app: Application, broker: Broker, start: datetime) -> None:
        self.app = app
        self.broker = broker
        self.start = start
        self.templates: list[OnStage] = []

    def create(self, scenario: list[Planned]) -> None:
        """All templates, in one transaction. Raises the first error of any."""
        creations = [creation(planned, self.start, number) for number, planned in enumerate(scenario)]
        for outcome in self.app.execute_many(creations):
            if isinstance(outcome, CouponClockError):
                raise outcome
        self.templates = [
            OnStage(created, created.valid_until, planned.turn)
            for created, planned in zip(creations, scenario, strict=True)
        ]

    def tick(self, now: datetime, sent: Mapping[UUID, datetime]) -> None:
        """Takes the turns whose time has come. `sent`: the end for which each template's message was sent."""
        for template in self.templates:
            if template.turn and now >= self._at(template.turn.at):
                self._take(template, template.turn, now, sent.get(template.template_id) == template.ends_at)

    def last_end(self) -> datetime:
        return max(template.ends_at for template in self.templates)

    def histories(self) -> dict[UUID, list[Envelope[Event]]]:
        """What the log says of each template."""
        return {t.template_id: self.app.history(t.created.shop_number, t.template_id) for t in self.templates}

    def _take(self, template: OnStage, turn: Turn, now: datetime, was_sent: bool) -> None:
        match turn:
            case Terminate():
                self._terminate(template)
            case MoveEnd(_, to) if was_sent:
                self._move(template, self._at(to))
            case SendAgain() if was_sent:
                self._send_again(template)
            case _ if now > self._at(turn.at) + PATIENCE:
                raise MessageNotSent(template.created.name, PATIENCE.total_seconds())
            case _:
                return
        template.turn = None

    def _terminate(self, template: OnStage) -> None:
        outcome = self.app.execute(
            TerminateCouponTemplate(
                command_id=uuid4(), template_id=template.template_id, shop_number=template.created.shop_number
            )
        )
        template.twist = "terminated"
        template.ends_at = next(event.ended_at for event in outcome.events if isinstance(event, Ended))

    def _move(self, template: OnStage, to: datetime) -> None:
        self.app.execute(
            ChangeValidity(
                command_id=uuid4(),
                template_id=template.template_id,
                shop_number=template.created.shop_number,
                valid_from=template.created.valid_from,
                valid_until=to,
            )
        )
        template.twist = "moved later" if to > template.ends_at else "moved earlier"
        template.ends_at = to

    def _send_again(self, template: OnStage) -> None:
        self.broker.publish([ExpiryDue(template.template_id, template.ends_at)], LEAD)
        template.twist = "sent twice"

    def _at(self, seconds: float) -> datetime:
        return self.start + timedelta(seconds=seconds)
