"""The one message there is: "look at this stream now", and its wire form."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from coupon_clock.domain.errors import CouponClockError


class ExpiryDue(Struct, frozen=True, gc=False, tag="ExpiryDue"):
    """Look at `stream_id` at `due_at` (aware UTC). What happens then is decided from the log, never from this."""

    stream_id: UUID
    due_at: datetime
    v: Literal[1] = 1


LONGEST_REASON = 500


@dataclass(eq=False)
class UnreadableMessage(CouponClockError):
    """A message was rejected, because it is no readable ExpiryDue: {reason}."""

    reason: str


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(ExpiryDue)


def to_wire(message: ExpiryDue) -> bytes:
    """JSON: {"type": "ExpiryDue", "stream_id": …, "due_at": …, "v": 1}."""
    return _encoder.encode(message)


def from_wire(body: bytes) -> ExpiryDue:
    """Unknown fields are ignored; `due_at` is in UTC then. Raises UnreadableMessage for another type or version, and
    for whatever else a body can be: reading it may raise anything, such as RecursionError."""
    try:
        message = _decoder.decode(body)
        if message.due_at.utcoffset() is None:
            raise UnreadableMessage("due_at has no time zone")
        return replace(message, due_at=message.due_at.astimezone(UTC))
    except UnreadableMessage:
        raise
    except Exception as error:
        raise UnreadableMessage(f"{type(error).__name__}: {error}"[:LONGEST_REASON]) from error
