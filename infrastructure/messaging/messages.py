"""The one message there is: "look at this stream now", and its wire form."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec
from msgspec import Struct

from coupon_clock.domain.errors import CouponClockError


class ExpiryDue(Struct, frozen=True, gc=False, tag="ExpiryDue"):
    """Look at `stream_id` at `due_at` (aware UTC). What happens then is decided from the log, never from this."""

    stream_id: UUID
    due_at: datetime
    v: Literal[1] = 1


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
    """Unknown fields are ignored. Raises UnreadableMessage for another type or version, and for what is no JSON."""
    try:
        message = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnreadableMessage(str(error)) from error
    if message.due_at.utcoffset() is None:
        raise UnreadableMessage("due_at has no time zone")
    return message
