"""The life of a coupon template: what it is, how events change it, and what is decided of a command.

`decide` refuses or returns events; `evolve` only assigns, because it replays history.
"""

from collections.abc import Iterable
from datetime import datetime
from functools import reduce
from itertools import chain
from typing import TypeVar
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from coupon_clock.domain import arguments, rules
from coupon_clock.domain.commands import (
    ChangeValidity,
    Command,
    CreateCouponTemplate,
    ExpireCouponTemplate,
    IncreaseStock,
    TerminateCouponTemplate,
)
from coupon_clock.domain.decider import Decider
from coupon_clock.domain.errors import CommandConflict, CouponTemplateNotFound, CouponTemplateOver
from coupon_clock.domain.events import Created, Ended, EndReason, Event, StockIncreased, TemplateFields, ValidityChanged
from coupon_clock.domain.texts import normalized
from coupon_clock.domain.validity import utc

Rule = TypeVar("Rule", bound=Struct)


class CouponTemplate(Struct, frozen=True, gc=False):
    """`created` as it was; `valid_from`, `valid_until`, `stock` as they are; `version` events so far."""

    created: Created
    valid_from: datetime
    valid_until: datetime
    stock: int
    ended: Ended | None = None
    version: int = 1

    @property
    def template_id(self) -> UUID:
        return self.created.template_id

    @property
    def shop_number(self) -> int:
        return self.created.shop_number

    def is_over(self, now: datetime) -> bool:
        return self.ended is not None or now >= self.valid_until

    def is_usable(self, at: datetime) -> bool:
        """`at`: an aware time. Raises InvalidArgument where it is naive."""
        arguments.refuse(rules.instant("at", at))
        return self.valid_from <= at and not self.is_over(at)

    def over_since(self) -> datetime:
        return self.ended.ended_at if self.ended else self.valid_until

    def ending(self, reason: EndReason, at: datetime) -> Ended:
        return Ended(self.shop_number, reason, at)


def due_at(template: CouponTemplate) -> datetime | None:
    """When to look at this template again: None once it is ended."""
    return None if template.ended else template.valid_until


# ── evolve ───────────────────────────────────────────────────────────────────────────────────────


def evolve(state: CouponTemplate | None, event: Event) -> CouponTemplate:
    if isinstance(event, Created):
        return CouponTemplate(event, event.valid_from, event.valid_until, event.stock)
    assert state is not None, "a stream begins with Created"
    version = state.version + 1
    match event:
        case StockIncreased():
            return replace(state, stock=state.stock + event.by, version=version)
        case ValidityChanged():
            return replace(state, valid_from=event.valid_from, valid_until=event.valid_until, version=version)
        case Ended():
            return replace(state, ended=event, version=version)


def fold(events: Iterable[Event], state: CouponTemplate | None = None) -> CouponTemplate | None:
    return reduce(evolve, events, state)


# ── decide ───────────────────────────────────────────────────────────────────────────────────────


def decide(state: CouponTemplate | None, command: Command, now: datetime) -> list[Event]:
    """The events that the command leads to, none when it is already so.

    `now` is aware UTC. Raises InvalidCommand, CouponTemplateNotFound, CouponTemplateOver, CommandConflict.
    """
    rules.refuse(rules.form_problems(command))
    if isinstance(command, CreateCouponTemplate):
        return create(state, command, now)
    template = own(state, command)
    match command:
        case IncreaseStock():
            return increase_stock(template, command, now)
        case ChangeValidity():
            return change_validity(template, command, now)
        case TerminateCouponTemplate():
            rules.refuse(rules.actor_problems(command))
            return terminate(template, now)
        case ExpireCouponTemplate():
            return expire(template, now)


def create(state: CouponTemplate | None, command: CreateCouponTemplate, now: datetime) -> list[Event]:
    if state is not None:
        if is_same_content(state.created, command):
            return []
        raise taken(command)
    rules.refuse(rules.creation_problems(command, now))
    return [created_by(command)]


def increase_stock(template: CouponTemplate, command: IncreaseStock, now: datetime) -> list[Event]:
    refuse_when_over(template, now)
    rules.refuse(chain(refused_anyhow(template, command), rules.increase_problems(template.stock, command.by)))
    return [StockIncreased(command.shop_number, command.by)]


def change_validity(template: CouponTemplate, command: ChangeValidity, now: datetime) -> list[Event]:
    refuse_when_over(template, now)
    wrong_validity = rules.validity_problems(command.valid_from, command.valid_until, now)
    rules.refuse(chain(refused_anyhow(template, command), wrong_validity))
    return [ValidityChanged(command.shop_number, utc(command.valid_from), utc(command.valid_until))]


def terminate(template: CouponTemplate, now: datetime) -> list[Event]:
    return expire(template, now) or ([] if template.ended else [template.ending(EndReason.TERMINATED, now)])


def expire(template: CouponTemplate, now: datetime) -> list[Event]:
    if template.ended or now < template.valid_until:
        return []
    return [template.ending(EndReason.EXPIRED, template.valid_until)]


# ── what decide uses ─────────────────────────────────────────────────────────────────────────────


def taken(command: CreateCouponTemplate) -> CommandConflict:
    """The same words for everybody: whose template has that id is nobody else's business."""
    return CommandConflict(command.command_id, command.template_id, "the template exists with other content")


def own(state: CouponTemplate | None, command: Command) -> CouponTemplate:
    """The template that the command is for. Only the clock's own command needs no shop."""
    shop_number = None if isinstance(command, ExpireCouponTemplate) else command.shop_number
    return existing(state, command.template_id, shop_number)


def existing(state: CouponTemplate | None, template_id: UUID, shop_number: int | None = None) -> CouponTemplate:
    """Returns the template. Raises CouponTemplateNotFound where there is none, or it is another shop's."""
    if state is None or shop_number not in (None, state.shop_number):
        raise CouponTemplateNotFound(template_id, shop_number)
    return state


def refused_anyhow(template: CouponTemplate, command: Command) -> rules.Problems:
    """Whatever the change."""
    return chain(rules.actor_problems(command), rules.length_problems(template.version))


def refuse_when_over(template: CouponTemplate, now: datetime) -> None:
    if template.is_over(now):
        raise CouponTemplateOver(template.template_id, template.over_since())


def created_by(command: CreateCouponTemplate) -> Created:
    """The fields as they were asked for; texts are normalized, times are in UTC."""
    fields = {field: getattr(command, field) for field in TemplateFields.__struct_fields__}
    texts = {
        "name": normalized(command.name),
        "goods": command.goods and normalized(command.goods),
        "receive_rule": with_normalized(command.receive_rule, "usage_instructions"),
        "consume_rule": with_normalized(command.consume_rule, "explanation_of_unmet_conditions"),
    }
    times = {"valid_from": utc(command.valid_from), "valid_until": utc(command.valid_until)}
    return Created(**fields | texts | times)


def with_normalized(rule: Rule, field: str) -> Rule:
    text = getattr(rule, field)
    return rule if (kept := normalized(text)) == text else replace(rule, **{field: kept})


def is_same_content(created: Created, command: CreateCouponTemplate) -> bool:
    return created == created_by(command)


def has_content_of(state: CouponTemplate | None, events: Iterable[Event], command: Command) -> bool:
    """Whether these events, recorded under the command's id, are what this command would have led to.

    Raises InvalidCommand where the command has a wrong type somewhere, and CouponTemplateNotFound for another shop.
    """
    rules.refuse(rules.form_problems(command))
    if not isinstance(command, CreateCouponTemplate):
        own(state, command)
    elif state is not None and state.shop_number != command.shop_number:
        raise taken(command)
    match command, list(events):
        case CreateCouponTemplate(), [Created() as event]:
            return is_same_content(event, command)
        case IncreaseStock(by=by), [StockIncreased() as event]:
            return event.by == by
        case ChangeValidity(), [ValidityChanged() as event]:
            return (utc(command.valid_from), utc(command.valid_until)) == (event.valid_from, event.valid_until)
        case TerminateCouponTemplate(), [Ended()]:
            return True
        case ExpireCouponTemplate(), [Ended() as event]:
            return event.reason is EndReason.EXPIRED
    return False


COUPON_TEMPLATES: Decider[CouponTemplate, Command, Event] = Decider(
    stream_field="template_id",
    decide=decide,
    evolve=evolve,
    has_content_of=has_content_of,
    due_at=due_at,
    due_command=lambda template_id, command_id: ExpireCouponTemplate(command_id=command_id, template_id=template_id),
    prepares_ending=True,
)
