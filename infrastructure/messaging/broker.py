"""What a broker must do.

It may lose, repeat, reorder and delay messages: nothing is decided from them, so that only lateness changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, runtime_checkable

from msgspec import Struct

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.messaging.messages import ExpiryDue


class BrokerUnavailable(CouponClockError):
    """The broker cannot be used right now: the loops keep trying, and the reconciler ends what is due meanwhile."""


class BrokerMisconfigured(BrokerUnavailable):
    """The broker is not set up as it must be: the loops keep trying, and the reconciler ends what is due meanwhile."""


@dataclass(eq=False)
class Unreachable(BrokerUnavailable):
    """The broker cannot be used right now ({reason}): the loops keep trying, and the reconciler ends what is due
    meanwhile."""

    reason: str


@dataclass(eq=False)
class PartlyStored(BrokerUnavailable):
    """The broker did not take all, so the rest is sent again. {reason}"""

    missing: Sequence[ExpiryDue]
    reason: str


class Delivery(Struct, frozen=True, gc=False):
    """One received message. `receipt` is the broker's own, opaque to all others."""

    message_id: str
    body: bytes
    receipt: object


@runtime_checkable
class Broker(Protocol):
    """One contract suite runs on every broker: tests/broker_contract.py.

    Every method may raise BrokerUnavailable. All are safe to call from several threads.
    """

    name: str
    arming_window: timedelta
    """How long before they are due it takes messages."""
    forgets: bool
    """Whether what was published is gone when this process ends."""
    receivers: int
    """How many threads should call `receive` at the same time."""

    def publish(self, messages: Sequence[ExpiryDue], lead: timedelta) -> None:
        """Stores all of them, to be delivered `lead` before they are due, or sooner. Returns when all are stored.

        Raises PartlyStored where some surely are: only those `missing` need to be sent again.
        """

    def receive(self, limit: int, invisible: timedelta, wait: timedelta) -> list[Delivery]:
        """Up to `limit` messages, waiting up to `wait` for the first; not delivered again while `invisible`."""

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Never delivers these again. One that was redelivered already is not an error."""

    def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Delivers these again soon, to whoever receives then."""

    def stop_receiving(self) -> None:
        """A `receive` under way returns at once with what it has, and later ones return nothing. Never waits."""

    def close(self) -> None:
        """Releases what it holds, in bounded time. A `receive` under way returns."""
