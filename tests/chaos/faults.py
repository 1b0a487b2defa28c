"""How each fault is done. What was done and when goes into the journal: lateness is judged by it."""

import subprocess
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from random import Random
from time import sleep, time
from typing import Any

import psycopg
from psycopg import sql

from chaos.journal import Journal
from chaos.schedule import Fault
from chaos.servers import LogServers, MessageServer
from chaos.supervised import Supervised
from other_settings import all_at_once, assignments, other_values

MOST_CONNECTIONS = 500
LONGEST_STEP_S = 3.0


class Faults:
    """`do` blocks for as long as the fault lasts. Faults of different sorts are done side by side."""

    def __init__(
        self, servers: LogServers, broker: MessageServer | None, processes: dict[str, Supervised], journal: Journal
    ) -> None:
        self._servers = servers
        self._broker = broker
        self._processes = processes
        self._journal = journal
        self._done: dict[str, Callable[[Fault], None]] = {
            "kill PostgreSQL": self._kill_postgresql,
            "end sessions": self._end_sessions,
            "fill connections": self._fill_connections,
            "hold a snapshot": self._hold_a_snapshot,
            "step the clock": self._step_the_clock,
            "other settings": self._other_settings,
            "promote the standby": self._promote,
            "kill the broker": self._kill_the_broker,
            "wipe the broker": self._wipe_the_broker,
            "stop the broker": self._stop_the_broker,
            "kill a process": self._kill_a_process,
            "stop a process": self._stop_a_process,
            "freeze connections": self._freeze_connections,
            "lose answers": self._lose_answers,
            "rebuild": self._rebuild,
            "kill a rebuild": self._rebuild,
        }

    def do(self, fault: Fault) -> None:
        """Those of messages are the processes' own to do: here they only take their time."""
        with self._noted(fault):
            self._done.get(fault.kind, lasting)(fault)

    @contextmanager
    def _noted(self, fault: Fault) -> Any:
        began = time()
        try:
            yield
        except (psycopg.Error, subprocess.SubprocessError) as error:
            self._journal.note("not done", kind=fault.kind, error=repr(error))
        finally:
            self._journal.note("fault", kind=fault.kind, target=fault.target, began=began, ended=time())

    # ── PostgreSQL ───────────────────────────────────────────────────────────────────────────────

    def _kill_postgresql(self, fault: Fault) -> None:
        self._servers.kill()
        lasting(fault)
        self._servers.start()

    def _promote(self, fault: Fault) -> None:
        self._servers.promote()

    def _end_sessions(self, fault: Fault) -> None:
        """A part of them."""
        with self._servers.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < %s",
                (max(0.2, fault.amount),),
            )

    def _fill_connections(self, fault: Fault) -> None:
        with ExitStack() as filling:
            with suppress(psycopg.OperationalError):
                for _ in range(MOST_CONNECTIONS):
                    filling.enter_context(self._servers.connect())
            lasting(fault)

    def _hold_a_snapshot(self, fault: Fault) -> None:
        with self._servers.connect() as connection, suppress(psycopg.OperationalError):
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            connection.execute("SELECT count(*) FROM pg_class")
            lasting(fault)

    def _step_the_clock(self, fault: Fault) -> None:
        """Forward, of both logs at once."""
        with self._servers.connect() as connection:
            connection.execute(
                "INSERT INTO chaos.step VALUES (clock_timestamp(), %s)", (fault.amount * LONGEST_STEP_S,)
            )

    def _other_settings(self, fault: Fault) -> None:
        """Of the database: for all sessions that begin, so some are ended."""
        with self._servers.connect() as connection:
            values = other_values(connection, ["user", "superuser"])
            chosen = dict(Random(fault.amount).sample(sorted(values.items()), len(values) // 3))
            whose = sql.SQL("ALTER DATABASE {}").format(sql.Identifier(connection.info.dbname)).as_string(None)
            connection.execute(assignments(whose, all_at_once(chosen, int(fault.amount * 4))).encode())
        self._end_sessions(fault)
        lasting(fault)
        self._servers.reset_settings()
        self._end_sessions(fault)

    # ── the broker ───────────────────────────────────────────────────────────────────────────────

    def _kill_the_broker(self, fault: Fault) -> None:
        assert self._broker
        self._broker.kill()
        lasting(fault)
        self._broker.start()

    def _wipe_the_broker(self, fault: Fault) -> None:
        assert self._broker
        self._broker.wipe()
        lasting(fault)
        self._broker.start()

    def _stop_the_broker(self, fault: Fault) -> None:
        """It takes connections, and says nothing."""
        assert self._broker
        with self._broker.stopped():
            lasting(fault)

    # ── processes ────────────────────────────────────────────────────────────────────────────────

    def _kill_a_process(self, fault: Fault) -> None:
        self._processes[fault.target].kill()
        lasting(fault)
        self._processes[fault.target].start()

    def _stop_a_process(self, fault: Fault) -> None:
        with self._processes[fault.target].stopped():
            lasting(fault)

    def _freeze_connections(self, fault: Fault) -> None:
        self._servers.proxies.freeze(fault.target)

    def _lose_answers(self, fault: Fault) -> None:
        with self._servers.proxies.losing_answers(fault.target):
            lasting(fault)

    def _rebuild(self, fault: Fault) -> None:
        """Of the log of that process; killed after so long, where it lasts at all."""
        name = ("coupon_template", "shop_month", "alarm")[int(fault.amount * 3)]
        rebuild = self._processes[fault.target].command_line("rebuild", name)
        try:
            rebuild.wait(fault.lasts or 60)
        except subprocess.TimeoutExpired:
            rebuild.kill()
        self._journal.note("rebuild", name=name, exit_code=rebuild.wait())


def lasting(fault: Fault) -> None:
    sleep(fault.lasts)
