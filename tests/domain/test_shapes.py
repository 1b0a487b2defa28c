"""How the shape of a stored event changes: a field is added, a tag renamed, a meaning changed. See docs/events.md.

Each example is tomorrow's shape of an event, reading today's line from golden/events.jsonl.
"""

from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from msgspec import Struct

from coupon_clock.domain import events as today
from coupon_clock.infrastructure.event_store.store import EventFormat
from examples import EVENING, MORNING, SHOP

GOLDEN = (Path(__file__).parent / "golden" / "events.jsonl").read_bytes().splitlines()


def stored_today(tag: str) -> bytes:
    """The first line of that event."""
    return next(line for line in GOLDEN if f'"type":"{tag}"'.encode() in line)


# ── a field is added ─────────────────────────────────────────────────────────────────────────────


class StockIncreased(Struct, frozen=True, tag="CouponTemplate.StockIncreased"):
    """It has a `supplier` now; where none was stored, nobody asked."""

    shop_number: int
    by: int
    supplier: str | None = None


def test_an_added_field_has_its_default_in_what_was_stored_before():
    stored = EventFormat[StockIncreased](StockIncreased)

    assert stored.decode(stored_today("CouponTemplate.StockIncreased")) == StockIncreased(SHOP, 5, None)


def test_an_added_field_is_passed_over_by_a_version_that_does_not_know_it_yet():
    increased = StockIncreased(SHOP, 5, supplier="Anna & Sons")
    written = EventFormat[StockIncreased](StockIncreased).encode(increased)

    assert EventFormat[today.Event](today.Event).decode(written) == today.StockIncreased(SHOP, 5)


# ── a tag is renamed ─────────────────────────────────────────────────────────────────────────────


class WindowMoved(Struct, frozen=True, tag="CouponTemplate.WindowMoved"):
    """What ValidityChanged is called now."""

    shop_number: int
    valid_from: datetime
    valid_until: datetime


class ValidityChanged(Struct, frozen=True, tag="CouponTemplate.ValidityChanged"):
    """Until then."""

    shop_number: int
    valid_from: datetime
    valid_until: datetime

    def upcast(self) -> WindowMoved:
        return WindowMoved(self.shop_number, self.valid_from, self.valid_until)


def test_what_was_stored_under_an_old_tag_is_read_as_what_it_is_called_now():
    stored = EventFormat[WindowMoved](WindowMoved | ValidityChanged)
    read = stored.decode(stored_today("CouponTemplate.ValidityChanged"))

    assert read == WindowMoved(SHOP, MORNING, EVENING)
    assert b'"type":"CouponTemplate.WindowMoved"' in stored.encode(read)


# ── a meaning changes ────────────────────────────────────────────────────────────────────────────


class Ended(Struct, frozen=True, tag="CouponTemplate.Ended.3"):
    """`by_whom`: "clock" or "merchant", instead of a reason."""

    shop_number: int
    by_whom: str
    ended_at: datetime


class Ended2(Struct, frozen=True, tag="CouponTemplate.Ended.2"):
    """`early`: before its end, instead of a reason."""

    shop_number: int
    early: bool
    ended_at: datetime

    def upcast(self) -> Ended:
        return Ended(self.shop_number, "merchant" if self.early else "clock", self.ended_at)


class Ended1(Struct, frozen=True, tag="CouponTemplate.Ended"):
    """As it is today."""

    shop_number: int
    reason: today.EndReason
    ended_at: datetime

    def upcast(self) -> Ended2:
        return Ended2(self.shop_number, self.reason is today.EndReason.TERMINATED, self.ended_at)


STORED_ENDED: EventFormat[Ended] = EventFormat(Ended | Ended2 | Ended1)


def test_an_earlier_shape_is_read_as_the_latest_one_shape_by_shape():
    lines = [line for line in GOLDEN if b'"type":"CouponTemplate.Ended"' in line]
    by_whom = {line: STORED_ENDED.decode(line).by_whom for line in lines}

    assert all((whom == "merchant") is (b'"terminated"' in line) for line, whom in by_whom.items())


def test_a_shape_that_was_forgotten_is_an_error_and_not_skipped():
    forgetful = EventFormat[Ended](Ended | Ended2)
    with pytest.raises(msgspec.ValidationError, match=r"Invalid value 'CouponTemplate\.Ended'"):
        forgetful.decode(stored_today("CouponTemplate.Ended"))
