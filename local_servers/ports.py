"""Free TCP ports, kept for as long as nobody else takes them, so that clients find a restarted server again."""

import random
import socket
from collections.abc import Iterable
from pathlib import Path

from coupon_clock.local_servers.errors import NoFreePort

# Below the ports that Linux (32768) and macOS (49152) give to outgoing connections.
FIRST, LAST = 20000, 32000


def is_free(port: int) -> bool:
    return all(can_bind(address, port) for address in ("127.0.0.1", ""))


def are_free(ports: Iterable[int]) -> bool:
    return all(map(is_free, ports))


def can_bind(address: str, port: int) -> bool:
    with socket.socket() as probe:
        # As Java does: a port whose last connections still linger is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_block(size: int, tries: int = 200) -> int:
    """The first of `size` neighbouring free ports."""
    for _ in range(tries):
        first = random.randrange(FIRST, LAST - size)
        if are_free(range(first, first + size)):
            return first
    raise NoFreePort(FIRST, LAST)


def remembered(file: Path) -> int | None:
    """The port written there last time, or None if there is none to be read."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
