"""The addresses of RocketMQ as its client reads them: what it cannot read it turns into nothing."""

import re

IPV4 = re.compile(r"\d{1,3}(\.\d{1,3}){3}")


def rocketmq_endpoints(given: str) -> str:
    """Returns them without blanks. Raises ValueError with what is wrong with them."""
    addresses = [part.strip() for part in given.split(";") if part.strip()]
    if given.strip() and not addresses:
        raise ValueError("must be host:port, and names no address")
    for address in addresses:
        host, _, port = address.partition(":")
        if "//" in address:
            raise ValueError(f"must be host:port, and {address} has a scheme")
        if ":" in port or "[" in address:
            raise ValueError(f"must have no IPv6 literal such as {address}, which the client cannot read")
        if not host or not port.isdecimal() or len(port) > 5 or not 1 <= int(port) <= 65_535:
            raise ValueError(f"must be host:port, and {address} is not")
        if len(addresses) > 1 and not IPV4.fullmatch(host):
            raise ValueError("must be one host:port, or several IPv4 addresses as 1.2.3.4:8081;1.2.3.5:8081")
    return ";".join(addresses)
