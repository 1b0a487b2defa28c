"""How fast files become templates, through the command itself: a process, from its start to its end.

    python benchmarks/importing.py [--json] [--lines 200000] [--scale]

The reference is what PostgreSQL alone takes for as many rows: COPY of ready-made events and alarms into the same
tables, 1,000 of each in a transaction, nothing read, checked or decided.
"""

import csv
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import msgspec
import psycopg
from measure import Figure, arguments, at_least, say, servers, tell, template

from coupon_clock.app import CreateCouponTemplate
from coupon_clock.domain.coupon_template import created_by
from coupon_clock.domain.events import StoredEvent
from coupon_clock.importing.csv_records import COLUMNS
from coupon_clock.importing.importer import CHUNK
from coupon_clock.infrastructure.event_store.store import EventFormat, topic
from coupon_clock.testing import throw_away_database

A_MILLION = 1_000_000
LEAST = 10_000

encode = EventFormat(StoredEvent).encode

COPY_EVENTS = "COPY coupon_clock.event (originator_id, originator_version, topic, state, command_id) FROM STDIN"
COPY_ALARMS = "COPY coupon_clock.alarm (stream_id, due_at) FROM STDIN"


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--lines", type=int, default=200_000)
    parser.add_argument("--scale", action="store_true", help="a million lines; takes minutes")
    given = parser.parse_args()
    lines = A_MILLION if given.scale else given.lines
    with servers("memory") as running, TemporaryDirectory(prefix="coupon-clock-benchmark-") as folder:
        return tell(figures(running.postgres.url, Path(folder), lines), given.json)


def figures(server_url: str, folder: Path, lines: int) -> Iterator[Figure]:
    as_json, as_csv = folder / "templates.jsonl", folder / "templates.csv"
    with throw_away_database(server_url) as url:
        limit = lines / write_and_copy(url, as_json, as_csv, lines)
    with throw_away_database(server_url) as url:
        yield at_least("import of CSV", lines / imported(url, as_csv), "lines/s", LEAST, limit)
    with throw_away_database(server_url) as url:
        yield at_least("import of JSON lines", lines / imported(url, as_json), "lines/s", LEAST, limit)
        yield at_least("import of the same file again", lines / imported(url, as_json), "lines/s", None)
        for file in (as_json, as_csv):
            seconds = imported(url, file, "--after", str(lines + 1))
            yield at_least(f"passed over by --after, {file.suffix}", lines / seconds, "lines/s", None)


def imported(database_url: str, file: Path, *options: str) -> float:
    """Seconds."""
    say(f"import {file.name} {' '.join(options)}")
    command = [sys.executable, "-m", "coupon_clock.cli", "import", str(file), *options]
    started = perf_counter()
    subprocess.run(
        command, env=os.environ | {"COUPON_CLOCK_DATABASE_URL": database_url}, stdout=subprocess.DEVNULL, check=True
    )
    return perf_counter() - started


# ── the files, and the reference ─────────────────────────────────────────────────────────────────


def write_and_copy(database_url: str, as_json: Path, as_csv: Path, lines: int) -> float:
    """Makes both files, and stores the same templates; returns the seconds that the storing took."""
    say(f"writing {lines:,} lines of each format; COPY of their events and alarms")
    end, seconds = datetime.now(UTC) + timedelta(days=30), 0.0
    with (
        psycopg.connect(database_url, autocommit=True) as connection,
        as_json.open("wb") as json_lines,
        as_csv.open("w", encoding="utf-8", newline="") as text,
    ):
        csv_rows = csv.writer(text)
        csv_rows.writerow(COLUMNS)
        for _ in range(lines // CHUNK):
            templates = [template(end) for _ in range(CHUNK)]
            json_lines.writelines(msgspec.json.encode(each) + b"\n" for each in templates)
            csv_rows.writerows(map(cells, templates))
            seconds += copied(connection, templates)
    return seconds


def copied(connection: psycopg.Connection, templates: Sequence[CreateCouponTemplate]) -> float:
    """Seconds; making the rows takes none of them."""
    rows = {COPY_EVENTS: "".join(map(event_row, templates)), COPY_ALARMS: "".join(map(alarm_row, templates))}
    started = perf_counter()
    with connection.transaction(), connection.cursor() as cursor:
        for statement, data in rows.items():
            with cursor.copy(statement) as copy:
                copy.write(data)
    return perf_counter() - started


def event_row(each: CreateCouponTemplate) -> str:
    event = created_by(each)
    state = encode(event).hex()
    return f"{each.template_id}\t1\t{topic(event)}\t\\\\x{state}\t{each.command_id}\n"


def alarm_row(each: CreateCouponTemplate) -> str:
    return f"{each.template_id}\t{each.valid_until}\n"


def cells(each: CreateCouponTemplate) -> list[object]:
    nested = msgspec.to_builtins(each)
    return [(nested[column.group] if column.group else nested).get(column.name) for column in COLUMNS.values()]


if __name__ == "__main__":
    sys.exit(main())
