"""Another process that sends commands at an even pace, and notes how long each took."""

import time
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from types import TracebackType
from typing import Self
from uuid import uuid4

from measure import SHOP, template

from coupon_clock.app import Application, IncreaseStock, Settings

PER_SECOND = 50
TEMPLATES = 100

Waited = tuple[float, float]
"""When a command was to be sent, in epoch seconds, and how long after that its outcome came."""


class Neighbour:
    """At work for as long as the block lasts."""

    def __init__(self, database_url: str) -> None:
        processes = get_context("spawn")
        self._stop = processes.Event()
        self._answer, theirs = processes.Pipe(duplex=False)
        self._process = processes.Process(target=_send_commands, args=(database_url, self._stop, theirs), daemon=True)
        self._waited: list[Waited] = []

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if error is None:
            self._waited = self._answer.recv()
        self._process.join()

    def between(self, since: datetime, until: datetime) -> list[float]:
        """Seconds that the commands of that time took."""
        return [waited for at, waited in self._waited if since.timestamp() <= at <= until.timestamp()]


def _send_commands(database_url: str, stop: Event, answer: Connection) -> None:
    """Times are counted from when a command was due to be sent, so that one that waits does not hide the next."""
    waited: list[Waited] = []
    with Application.open(Settings.load(database_url=database_url)) as app:
        far = datetime.now(UTC) + timedelta(days=30)
        template_ids = [app.execute(template(far)).template_id for _ in range(TEMPLATES)]
        at = time.time()
        while not stop.is_set():
            time.sleep(max(0.0, at - time.time()))
            target = template_ids[len(waited) % TEMPLATES]
            app.execute(IncreaseStock(command_id=uuid4(), template_id=target, shop_number=SHOP, by=1))
            waited.append((at, time.time() - at))
            at += 1 / PER_SECOND
    answer.send(waited)
