"""Addresses of RocketMQ: what its client would misread is refused with the settings."""

import pytest

from coupon_clock.infrastructure.settings import Settings, UnusableSettings


@pytest.mark.parametrize(
    ("endpoints", "problem"),
    [
        (" ; ", "names no address"),
        ("localhost", "localhost is not"),
        ("localhost:", "localhost: is not"),
        (":8081", ":8081 is not"),
        ("localhost:http", "localhost:http is not"),
        ("localhost:0", "localhost:0 is not"),
        ("localhost:65536", "localhost:65536 is not"),
        (f"localhost:{'9' * 900}", " is not"),
        ("http://localhost:8081", "has a scheme"),
        ("[::1]:8081", "IPv6"),
        ("::1:8081", "IPv6"),
        ("a.example:8081;b.example:8081", "or several IPv4"),
        ("1.2.3.4:8081;b.example:8081", "or several IPv4"),
    ],
)
def test_unreadable_endpoints_are_refused_by_name(endpoints, problem):
    with pytest.raises(UnusableSettings, match=f"COUPON_CLOCK_ROCKETMQ_ENDPOINTS: must .*{problem}"):
        Settings.load(rocketmq_endpoints=endpoints)


@pytest.mark.parametrize("endpoints", ["", "localhost:8081", "1.2.3.4:8081;1.2.3.5:8082", "a-b.example:1"])
def test_readable_endpoints_are_taken_as_they_are(endpoints):
    assert Settings.load(rocketmq_endpoints=endpoints).rocketmq_endpoints == endpoints


def test_blanks_in_endpoints_are_nothing():
    settings = Settings.load(rocketmq_endpoints=" 1.2.3.4:8081 ; 1.2.3.5:8081;")
    assert settings.rocketmq_endpoints == "1.2.3.4:8081;1.2.3.5:8081"
