"""Chaos with a seed: make chaos SECONDS=60 SEED=1. docs/proof.md says what is done, and what is proven."""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep, time
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from chaos import checker
from chaos.faults import Faults
from chaos.journal import Journal
from chaos.process import VARIABLE, Part, has_asked_all
from chaos.schedule import Fault, by_lane, schedule
from chaos.servers import GROUP, TOPIC, LogServers, MessageServer, prepare
from chaos.supervised import Supervised
from chaos.time_of_run import TimeOfRun
from coupon_clock.app import Application, Settings
from coupon_clock.local_servers.rocketmq_server import LocalRocketMQ

SCHEMAS = {"a": "coupon_clock", "b": "other_clock"}
"""Of the log of the processes whose names begin so. That of `a` has RocketMQ, if there is one."""
PROCESSES = ["a1", "a2", "a3", "b1", "b2"]
FROM_COMMAND_LINE = {"a3"}
"""Runs nothing but `coupon-clock run`."""
ALL_RUN_WITHIN_S = 120.0
ALL_OUT_WITHIN_S = 120.0
STOOD_STILL_S = 0.1
SLOW_COMMIT_S = 0.1
LOOK_EVERY_S = 3.0
MOST_SHOWN = 5
SHARES = ("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("most", 1.0)


class Options(NamedTuple):
    """`broker`: with RocketMQ; else both logs have in-process brokers. `promotion`: with a standby to promote."""

    seed: int
    seconds: float
    broker: bool = False
    promotion: bool = False


def run(options: Options, folder: Path) -> checker.Result:
    """One run, in a folder of its own, and what the checker says of it."""
    journal = Journal(folder / "run.jsonl")
    servers = LogServers(folder, PROCESSES, options.promotion)
    broker = message_server(folder) if options.broker else None
    time_of_run, over = TimeOfRun(folder, options.seconds), Event()
    processes = {name: supervised(name, options, folder, servers, broker, journal) for name in PROCESSES}
    watches = [
        Thread(target=watch, args=(over, journal)),
        Thread(target=look, args=(over, servers, journal)),
        Thread(target=commit, args=(over, servers, journal)),
        *(Thread(target=keep, args=(over, processes[name])) for name in FROM_COMMAND_LINE),
    ]
    try:
        for schema in SCHEMAS.values():
            Application.migrate(Settings.load(database_url=servers.url, database_schema=schema))
        prepare(servers.url, SCHEMAS.values())
        for each in (*processes.values(), *watches):
            each.start()
        wait_until_all_run(list(processes.values()))
        time_of_run.begin()
        disturb(Faults(servers, broker, processes, journal), faults_of(options), time_of_run)
        while not time_of_run.is_over():
            sleep(0.05)
        let_all_run_out(servers, folder, journal)
        over.set()
        for process in processes.values():
            process.stop()
        return checker.check(servers.url, folder, SCHEMAS)
    finally:
        over.set()
        for process in processes.values():
            process.end()
        for thread in watches:
            thread.join()
        servers.end()
        if broker:
            broker.kill()


def faults_of(options: Options) -> list[Fault]:
    return schedule(options.seed, options.seconds, PROCESSES, broker=options.broker, promotion=options.promotion)


# ── what runs ────────────────────────────────────────────────────────────────────────────────────────


def message_server(folder: Path) -> MessageServer:
    server = MessageServer(LocalRocketMQ(folder / "rocketmq"))
    server.start()
    return server


def supervised(
    name: str,
    options: Options,
    folder: Path,
    servers: LogServers,
    broker: MessageServer | None,
    journal: Journal,
) -> Supervised:
    part = Part(name, str(folder), servers.url, options.seed, options.seconds, PROCESSES)
    variables = {
        "COUPON_CLOCK_DATABASE_URL": servers.proxies.urls[name],
        "COUPON_CLOCK_DATABASE_SCHEMA": SCHEMAS[name[0]],
        "COUPON_CLOCK_ROCKETMQ_ENDPOINTS": broker.server.endpoints if broker and name[0] == "a" else "",
        "COUPON_CLOCK_ROCKETMQ_TOPIC": TOPIC,
        "COUPON_CLOCK_ROCKETMQ_GROUP": GROUP,
        "COUPON_CLOCK_LEAD": "2",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        VARIABLE: json.dumps(part._asdict()),
    }
    own = ["-m", "coupon_clock.cli", "run"] if name in FROM_COMMAND_LINE else ["-m", "chaos.process"]
    return Supervised(name, [sys.executable, *own], variables, folder, journal)


def watch(over: Event, journal: Journal) -> None:
    """Notes when the machine had no time for us: then all was late."""
    while True:
        began = time()
        if over.wait(0.05):
            return
        if time() - began > STOOD_STILL_S:
            journal.note("machine stood still", began=began)


def keep(over: Event, process: Supervised) -> None:
    """Starts it again, as a supervisor would: `coupon-clock run` does not wait for a PostgreSQL that is away."""
    while not over.wait(0.5):
        process.start_again()


def commit(over: Event, servers: LogServers, journal: Journal) -> None:
    """Notes which commits take long: of nothing but one row, so that it is the server that was slow."""
    while not over.wait(0.1):
        with suppress(psycopg.Error), servers.connect() as connection:
            while not over.wait(0.05):
                began = time()
                connection.execute("INSERT INTO chaos.probe DEFAULT VALUES")
                if time() - began > SLOW_COMMIT_S:
                    journal.note("slow commit", began=began)


def look(over: Event, servers: LogServers, journal: Journal) -> None:
    """Checks now and then what must hold at any time; for a tenth of the time at most."""
    pause = LOOK_EVERY_S
    while not over.wait(pause):
        began = monotonic()
        with suppress(psycopg.OperationalError), servers.connect() as connection:
            for schema in SCHEMAS.values():
                for violation in checker.check_now(connection, schema):
                    journal.note("unexpected", by=schema, error=violation)
                journal.note("snapshot", schema=schema)
        pause = max(LOOK_EVERY_S, 10 * (monotonic() - began))


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────


def disturb(faults: Faults, planned: Sequence[Fault], time_of_run: TimeOfRun) -> None:
    """Does all of them, each lane beside the others; returns when all are over. Servers may take long to start: a lane
    that is late goes on at once, and ends with the commands."""

    def do(lane: Sequence[Fault]) -> None:
        for fault in lane:
            sleep(max(0.0, fault.at - time_of_run.now()))
            if time_of_run.is_over():
                return
            faults.do(fault)

    threads = [Thread(target=do, args=(lane,)) for lane in by_lane(planned)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def wait_until_all_run(processes: Sequence[Supervised]) -> None:
    deadline = monotonic() + ALL_RUN_WITHIN_S
    while not all(process.says("running action=start") for process in processes):
        assert monotonic() < deadline, "not all processes run"
        sleep(0.05)


def let_all_run_out(servers: LogServers, folder: Path, journal: Journal) -> None:
    """Until commands are answered, nothing is due, and all that follows has caught up; not for ever."""
    deadline = monotonic() + ALL_OUT_WITHIN_S
    while monotonic() < deadline:
        sleep(0.5)
        with suppress(psycopg.OperationalError), servers.connect() as connection:
            if all(is_out(connection, schema) for schema in SCHEMAS.values()) and asked_all(folder):
                return
    journal.note("unexpected", by="run", error=f"not all was done {ALL_OUT_WITHIN_S:g} s after the last command")


def asked_all(folder: Path) -> bool:
    return all(has_asked_all(str(folder), name).exists() for name in PROCESSES if name not in FROM_COMMAND_LINE)


def is_out(connection: psycopg.Connection[Any], schema: str) -> bool:
    """What ends in an hour or two stays."""
    statement = sql.SQL(
        "SELECT NOT EXISTS (SELECT FROM {schema}.alarm WHERE due_at <= {schema}.now_utc() + interval '1 minute')"
        " AND (SELECT count(*) = 4 FROM {schema}.checkpoint"
        "       WHERE position = (SELECT max(notification_id) FROM {schema}.event))"
    )
    row = connection.execute(statement.format(schema=sql.Identifier(schema))).fetchone()
    return row == (True,)


# ── what is said ─────────────────────────────────────────────────────────────────────────────────────


def report(result: checker.Result) -> None:
    for name, figure in sorted(result.figures.items()):
        print(f"  {name}: {spread(figure) if isinstance(figure, list) else figure}")
    for kind, alike in sorted(by_kind(result.violations).items()):
        print(*alike[:MOST_SHOWN], sep="\n")
        print(f"{kind}: {len(alike)} in all")
    print("NOT PROVEN" if result.violations else "P0 to P8 hold")


def by_kind(violations: Sequence[str]) -> dict[str, list[str]]:
    """Log and invariant come first in each."""
    kinds: dict[str, list[str]] = {}
    for violation in violations:
        kinds.setdefault(violation[: violation.index(": ", 3)], []).append(violation)
    return kinds


def spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    parts = [f"{name} {ordered[int(share * (len(ordered) - 1))]:.3f} s" for name, share in SHARES] if ordered else []
    return ", ".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="by default another one each time")
    parser.add_argument("--broker", choices=("rocketmq", "memory"), default="rocketmq")
    parser.add_argument("--promotion", action="store_true", help="with a standby, which is promoted")
    given = parser.parse_args()
    seed = random.randrange(1_000_000) if given.seed is None else given.seed
    options = Options(seed, given.seconds, given.broker == "rocketmq", given.promotion)
    for fault in faults_of(options):
        print(f"{fault.at:8.2f} s  {fault.kind} {fault.target}" + (f" for {fault.lasts:.1f} s" if fault.lasts else ""))
    folder = Path(tempfile.mkdtemp(prefix="coupon-clock-chaos-"))
    print(f"seed {seed}, {given.seconds:g} s, in {folder}", flush=True)
    result = run(options, folder)
    report(result)
    if result.violations:
        print(f"repeat it with: make chaos SECONDS={given.seconds:g} SEED={seed}; kept in {folder}")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
