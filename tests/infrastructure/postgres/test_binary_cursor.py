"""What is read does not depend on the session's settings."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from coupon_clock.infrastructure.postgres.connection import connect

NOON = datetime(2026, 3, 1, 12, 30, 15, 123_456, tzinfo=UTC)
VALUES = (NOON, timedelta(days=-3, microseconds=7), b"\\\x00\xff", 1.1, "ü\\")


@pytest.mark.parametrize(
    "setting",
    [
        "DateStyle TO German",
        "DateStyle TO SQL, DMY",
        "TimeZone TO 'Asia/Kathmandu'",
        "IntervalStyle TO sql_standard",
        "bytea_output TO escape",
        "extra_float_digits TO -15",
        "standard_conforming_strings TO off",
    ],
)
def test_values_come_back_as_they_went_whatever_is_set(settings, setting):
    with connect(settings) as connection:
        connection.execute(f"SET {setting}")
        came_back = connection.execute("SELECT %s, %s, %s, %s, %s::text", VALUES).fetchone()
    assert came_back == VALUES
    assert came_back[0].tzinfo is UTC


@pytest.mark.parametrize("time", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
def test_the_first_and_the_last_time_come_back(settings, time):
    with connect(settings) as connection:
        assert connection.execute("SELECT %s", (time,)).fetchone() == (time,)


@pytest.mark.parametrize("time", ["infinity", "10000-01-01 00:00:00+00", "0001-12-31 00:00:00+00 BC"])
def test_a_time_that_python_does_not_have_is_an_error_of_the_data(settings, time):
    with connect(settings) as connection, pytest.raises(psycopg.DataError, match="beyond the years"):
        connection.execute("SELECT %s::timestamptz", (time,)).fetchone()
