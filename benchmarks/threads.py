"""Several threads that repeat one call for a while."""

from collections.abc import Callable
from threading import Event, Thread
from time import perf_counter, sleep
from typing import NamedTuple


class Calls(NamedTuple):
    """`took`: seconds of each call; `elapsed`: of all of them together."""

    took: list[float]
    elapsed: float

    @property
    def rate(self) -> float:
        return len(self.took) / self.elapsed


def repeat(call: Callable[[], object], threads: int, seconds: float) -> Calls:
    """No thread pauses between two calls."""
    stop = Event()
    took: list[list[float]] = [[] for _ in range(threads)]

    def run(mine: list[float]) -> None:
        while not stop.is_set():
            started = perf_counter()
            call()
            mine.append(perf_counter() - started)

    running = [Thread(target=run, args=(mine,)) for mine in took]
    started = perf_counter()
    for thread in running:
        thread.start()
    sleep(seconds)
    stop.set()
    for thread in running:
        thread.join()
    return Calls([each for mine in took for each in mine], perf_counter() - started)
