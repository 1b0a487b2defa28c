"""Every error that Coupon Clock raises on purpose. A class's docstring is its message."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

LONGEST_SHOWN = 200


class CouponClockError(Exception):
    """Something that Coupon Clock refuses or cannot do."""

    def __str__(self) -> str:
        template = " ".join((type(self).__doc__ or "").split())
        return template.format(**vars(self))


@dataclass(eq=False)
class CouponTemplateNotFound(CouponClockError):
    """There is no coupon template {template_id} in shop {shop_number}: check both."""

    template_id: UUID
    shop_number: int | None


@dataclass(eq=False)
class CouponTemplateOver(CouponClockError):
    """Coupon template {template_id} is over since {over_since:%Y-%m-%dT%H:%M:%S.%fZ}: create a new one instead."""

    template_id: UUID
    over_since: datetime


@dataclass(frozen=True)
class Problem:
    """One broken rule: the field (dotted where nested), the value given, and the rule in words."""

    field: str
    value: object
    reason: str

    def __str__(self) -> str:
        got = repr(self.value)
        return f"{self.field} {self.reason} (got {got if len(got) <= LONGEST_SHOWN else got[:LONGEST_SHOWN] + '…'})"


@dataclass(eq=False)
class InvalidArgument(CouponClockError):
    """These arguments cannot be used: {listed}."""

    problems: list[Problem]

    @property
    def listed(self) -> str:
        return "; ".join(map(str, self.problems))

    def __str__(self) -> str:
        return (type(self).__doc__ or "").format(listed=self.listed)


class InvalidCommand(InvalidArgument):
    """The command breaks these rules: {listed}."""


@dataclass(eq=False)
class CommandConflict(CouponClockError):
    """Command {command_id} conflicts with stream {stream_id}: {reason}."""

    command_id: UUID
    stream_id: UUID
    reason: str


@dataclass(eq=False)
class OutcomeUnknown(CouponClockError):
    """The answer to command {command_id} was lost: send the same command again, it has no second effect."""

    command_id: UUID
