"""Waiting for a condition, never for a time."""

from collections.abc import Callable
from time import monotonic, sleep


def eventually(condition: Callable[[], object], within: float = 30.0) -> None:
    """Returns once `condition()` holds; fails when it does not within so many seconds."""
    deadline = monotonic() + within
    while not condition():
        assert monotonic() < deadline, f"not within {within} s: {condition}"
        sleep(0.01)
