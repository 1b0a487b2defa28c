"""What goes in packed comes out as it was."""

from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid4

import pytest

from coupon_clock.infrastructure.postgres.arrays import Bigints, Byteas, Texts, Timestamps, Uuids, packed
from coupon_clock.infrastructure.postgres.connection import connect

FIRST = datetime(1, 1, 1, tzinfo=UTC)
LAST = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
SHANGHAI = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=8)))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Uuids, [UUID(int=0), uuid4(), UUID(int=2**128 - 1)]),
        (Bigints, [0, 1, -1, 2**63 - 1, -(2**63)]),
        (Texts, ["", "CouponTemplate.Created", "优惠券 ½ 🎟"]),
        (Byteas, [b"", b"\0\xff", b"x" * 10_000]),
        (Timestamps, [FIRST, None, LAST, SHANGHAI]),
    ],
)
def test_an_array_comes_back_as_it_went_in(settings, kind, values):
    with connect(settings) as connection:
        assert connection.execute("SELECT %b, %b", (packed(kind, values), packed(kind, []))).fetchone() == (values, [])
