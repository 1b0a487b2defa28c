"""The right to be the only one that does something, as a row: it works through poolers, and shows who has it.

Whoever has it counts up while it works. Who wants it and sees the count stand still for long enough, by a clock of its
own, takes over: no two clocks are compared. What is done under it must be safe all the same, because a process that
was only slow goes on.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from threading import Event, Thread
from time import monotonic
from typing import NamedTuple
from uuid import UUID, uuid4

from coupon_clock.infrastructure.logs import Failures, Log
from coupon_clock.infrastructure.postgres.database import Database, fetch_one

PATIENCE_S = 15.0
RENEWALS_A_PATIENCE = 3

TAKE = """
INSERT INTO {schema}.lease AS held (name, holder, who) VALUES (%(name)s, %(holder)s, %(who)s)
    ON CONFLICT (name) DO UPDATE
   SET holder = excluded.holder, who = excluded.who, renewals = held.renewals + 1,
       working_since = clock_timestamp() - %(at_work_for)s::interval,
       taken_at = CASE WHEN held.holder = excluded.holder THEN held.taken_at ELSE excluded.taken_at END
 WHERE held.holder = %(holder)s
    OR (held.holder, held.renewals) = (%(stale_holder)s::uuid, %(stale_renewals)s::bigint)
"""
HELD = "SELECT holder, renewals, who, taken_at FROM {schema}.lease WHERE name = %s"
IS_HELD = "SELECT EXISTS (SELECT FROM {schema}.lease WHERE name = %s AND holder = %s)"
RELEASE = "DELETE FROM {schema}.lease WHERE name = %s AND holder = %s"


log = Log(__name__)


class Held(NamedTuple):
    """A lease as another process has it."""

    holder: UUID
    renewals: int
    who: str
    taken_at: datetime


class Lease:
    """The lease `name`, for one holder. `patience_s`: how long another's count may stand still.

    Every method but `kept` raises DatabaseUnavailable.
    """

    def __init__(self, database: Database, name: str, patience_s: float = PATIENCE_S) -> None:
        self._database = database
        self._name = name
        self._patience_s = patience_s
        self.holder = uuid4()
        self.other: Held | None = None
        self._unchanged_since = 0.0
        self._at_work = Event()
        self._at_work_since = 0.0
        self._released = Event()
        self._keeper: Thread | None = None
        self._failures = Failures(log)

    def take(self) -> bool:
        """Takes or renews it. Returns False while another has it, who is then `other`."""
        return self._take(None)

    def _take(self, at_work_for: timedelta | None) -> bool:
        stale = self.other if self.other and monotonic() - self._unchanged_since > self._patience_s else None
        parameters = {
            "name": self._name,
            "holder": self.holder,
            "who": f"{socket.gethostname()}, process {os.getpid()}",
            "at_work_for": at_work_for,
            "stale_holder": stale and stale.holder,
            "stale_renewals": stale and stale.renewals,
        }
        with self._database.connection() as connection:
            taken = connection.execute(self._database.sql(TAKE), parameters).rowcount == 1
            found = None if taken else connection.execute(self._database.sql(HELD), (self._name,)).fetchone()
        other = Held._make(found) if found else None
        if other != self.other:
            self.other, self._unchanged_since = other, monotonic()
        return taken

    def is_held(self) -> bool:
        """Whether this holder has it."""
        with self._database.connection() as connection:
            return bool(fetch_one(connection, self._database.sql(IS_HELD), self._name, self.holder)[0])

    def release(self) -> None:
        """Another may take it at once."""
        self._released.set()
        self._at_work.set()
        with self._database.connection() as connection:
            connection.execute(self._database.sql(RELEASE), (self._name, self.holder))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renews it in a thread until the block ends, however long its work takes."""
        if self._keeper is None or not self._keeper.is_alive() or self._released.is_set():
            self._released = Event()
            self._keeper = Thread(target=self._keep, args=(self._released,), name=f"lease {self._name}", daemon=True)
            self._keeper.start()
        self._at_work_since = monotonic()
        self._at_work.set()
        try:
            yield
        finally:
            self._at_work.clear()

    def _keep(self, released: Event) -> None:
        while not released.is_set():
            self._at_work.wait()
            if not released.wait(self._patience_s / RENEWALS_A_PATIENCE) and self._at_work.is_set():
                try:
                    self._take(timedelta(seconds=monotonic() - self._at_work_since))
                except BaseException as error:  # the work goes on, and the next renewal may succeed
                    self._failures.report("lease not renewed", error, True, action="renew", name=self._name)
