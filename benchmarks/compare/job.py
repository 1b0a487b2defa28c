"""The job that all do: one autocommitted row each, with PostgreSQL's time. And what all peers are called with.

python PEER.py schedule FILE   the times, in epoch seconds, as JSON: job n is due at the nth
python PEER.py work            until SIGTERM or SIGKILL
python PEER.py collect         where jobs are no rows of `done` yet
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import local

import psycopg

DATABASE_URL = os.environ.get("DATABASE_URL", "")
SQLALCHEMY_URL = DATABASE_URL.replace("postgresql://", "postgresql+psycopg://", 1)

here = local()


def record(job: int) -> None:
    """Over one connection a thread."""
    if not hasattr(here, "connection") or here.connection.closed:
        here.connection = psycopg.connect(DATABASE_URL, autocommit=True)
    here.connection.execute("INSERT INTO done VALUES (%s, clock_timestamp())", (job,))


def aware(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def main(
    schedule: Callable[[Sequence[float]], object],
    work: Callable[[], object],
    collect: Callable[[], object] = lambda: None,
) -> None:
    match sys.argv[1]:
        case "schedule":
            schedule(json.loads(Path(sys.argv[2]).read_text()))
        case "work":
            work()
        case "collect":
            collect()
