"""Where RocketMQ is and who we are there, checked before its client sees it."""

import re
from typing import NamedTuple, Self

from pydantic import SecretStr

from coupon_clock.infrastructure.messaging.rocketmq.errors import EndpointsUnreadable, NameUnusable
from coupon_clock.infrastructure.settings import Settings

_NAME = re.compile(r"[%a-zA-Z0-9_-]{1,120}")
_IPV4 = re.compile(r"\d{1,3}(\.\d{1,3}){3}")


class Access(NamedTuple):
    """Plain values; the secret stays out of its repr."""

    endpoints: str
    topic: str
    group: str
    namespace: str
    access_key: str
    secret_key: SecretStr
    tls: bool

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Raises EndpointsUnreadable or NameUnusable."""
        for setting in "rocketmq_topic", "rocketmq_group":
            if not _NAME.fullmatch(name := getattr(settings, setting)):
                raise NameUnusable(f"COUPON_CLOCK_{setting.upper()}", name)
        return cls(
            checked_endpoints(settings.rocketmq_endpoints),
            settings.rocketmq_topic,
            settings.rocketmq_group,
            settings.rocketmq_namespace,
            settings.rocketmq_access_key,
            settings.rocketmq_secret_key,
            settings.rocketmq_tls,
        )


def checked_endpoints(text: str) -> str:
    """Returns them without blanks. The client turns what it cannot read into nothing, so it is checked here.

    Raises EndpointsUnreadable.
    """
    addresses = [part.strip() for part in text.split(";") if part.strip()]
    if not addresses:
        raise EndpointsUnreadable(text, "it names no address")
    for address in addresses:
        host, _, port = address.partition(":")
        if "//" in address:
            raise EndpointsUnreadable(text, f"{address} has a scheme")
        if ":" in port or "[" in address:
            raise EndpointsUnreadable(text, f"{address} is an IPv6 literal, which the client cannot read")
        if not host or not port.isdecimal() or not 1 <= int(port) <= 65_535:
            raise EndpointsUnreadable(text, f"{address} is not host:port")
        if len(addresses) > 1 and not _IPV4.fullmatch(host):
            raise EndpointsUnreadable(text, "the client takes one host name, or several IPv4 addresses")
    return ";".join(addresses)
