"""`coupon-clock import` as a user meets it: formats, progress, stops of every kind and how it goes on."""

import json
import os
import re
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory
from termios import FIONREAD
from typing import BinaryIO

import psycopg
import pytest
from formats import cells, csv_file, json_lines, some_templates

from command_line import coupon_clock, running
from coupon_clock.app import Application, Settings
from coupon_clock.importing.importer import CHUNK
from coupon_clock.local_servers.postgres import LocalPostgres
from examples import a_template
from waiting import eventually

MANY = 20 * CHUNK


@pytest.fixture
def fragile_postgres() -> Iterator[LocalPostgres]:
    """One of this test's own, to be killed."""
    with TemporaryDirectory(prefix="coupon-clock-tests-", ignore_cleanup_errors=True) as folder:
        server = LocalPostgres(Path(folder) / "postgres")
        server.start()
        Application.migrate(Settings.load(database_url=server.url))
        yield server
        server.kill()


def created(database_url: str) -> int:
    with psycopg.connect(database_url) as connection:
        (count,) = connection.execute("SELECT count(*) FROM coupon_clock.event").fetchone() or (0,)
    return count


def ids_created(database_url: str) -> list[str]:
    with psycopg.connect(database_url) as connection:
        return [str(i) for (i,) in connection.execute("SELECT originator_id FROM coupon_clock.event ORDER BY 1")]


@contextmanager
def slowly_fed(file: Path, first: bytes, database_url: str, *options: str) -> Iterator[tuple[Popen[str], BinaryIO]]:
    """An import that has done `first`, which is whole chunks, and waits for more in the pipe that is its file."""
    os.mkfifo(file)
    with running(database_url, "import", str(file), *options) as process, file.open("wb") as pipe:
        pipe.write(first)
        pipe.flush()
        eventually(lambda: created(database_url) == first.count(b"\n"))
        wait_for_reader(pipe)
        yield process, pipe
    file.unlink()


def wait_for_reader(pipe: BinaryIO) -> None:
    """Until it has done all it was given, and reads again: it takes the blank that is put before the next line."""
    pipe.write(b" ")
    pipe.flush()
    eventually(lambda: ioctl(pipe, FIONREAD, b"\0" * 4) == b"\0" * 4)


def go_on_as_reported(printed: str, database_url: str) -> str:
    """Runs the command that a stopped import printed, and returns what that one says at its end."""
    (command,) = re.findall(r"Go on with: coupon-clock (.*)", printed)
    done = coupon_clock(*shlex.split(command), database_url=database_url)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ── formats ──────────────────────────────────────────────────────────────────────────────────────


def test_the_good_lines_go_in_and_the_bad_ones_are_named(database_url):
    template = a_template(valid_until=a_template().valid_until.replace(year=8000))
    many = json_lines(template).replace(b'"stock":100', b'"stock":"many"')
    unruly = json_lines(a_template(valid_until=template.valid_until, name=" "))

    done = coupon_clock("import", "-", database_url=database_url, given=json_lines(template) + many + b"\n{\n" + unruly)

    assert done.returncode == 1
    assert done.stdout == "1 templates imported, 3 lines refused\n"
    reasons = done.stderr.splitlines()
    assert [reason.split(":")[0] for reason in reasons] == ["line 2", "line 4", "line 5"]
    assert "stock" in reasons[0]
    assert "name" in reasons[2]


def test_importing_the_same_file_again_changes_nothing(database_url):
    given = json_lines(*some_templates(10))
    for _ in range(2):
        done = coupon_clock("import", "-", "--json", database_url=database_url, given=given)
        assert json.loads(done.stdout) == {"accepted": 10, "over": 0, "refused": 0}

    assert created(database_url) == 10


def test_a_file_named_csv_is_read_as_such(database_url, tmp_path):
    good, bad = some_templates(2)
    (tmp_path / "Spring.CSV").write_bytes(csv_file(cells(good), cells(bad, stock="1.5")))

    done = coupon_clock("import", str(tmp_path / "Spring.CSV"), "--json", database_url=database_url)

    assert done.returncode == 1
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"line": 3, "reason": "stock must be a whole number, as 100 (got '1.5')"},
        {"accepted": 1, "over": 0, "refused": 1},
    ]
    assert ids_created(database_url) == [str(good.template_id)]


def test_the_format_can_be_named_for_standard_input_and_for_other_names(database_url, tmp_path):
    one, two = some_templates(2)
    (tmp_path / "lines.csv").write_bytes(json_lines(two))

    by_input = coupon_clock("import", "-", "--format", "csv", database_url=database_url, given=csv_file(cells(one)))
    by_name = coupon_clock("import", str(tmp_path / "lines.csv"), "--format", "json", database_url=database_url)

    assert (by_input.returncode, by_name.returncode) == (0, 0)
    assert created(database_url) == 2


def test_a_header_that_cannot_be_used_is_one_sentence_before_anything_goes_in(database_url, tmp_path):
    (tmp_path / "a.csv").write_bytes(csv_file(cells(*some_templates(1)) | {"colour": "red"}))

    done = coupon_clock("import", str(tmp_path / "a.csv"), database_url=database_url)

    assert done.returncode == 2
    assert "column 'colour' is unknown" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert created(database_url) == 0


@pytest.mark.parametrize("name", ["empty.jsonl", "header.csv"])
def test_a_file_with_no_templates_is_imported_in_no_time(database_url, tmp_path, name):
    header = csv_file(cells(*some_templates(1))).partition(b"\n")[0]
    (tmp_path / name).write_bytes(header if name.endswith("csv") else b"")

    done = coupon_clock("import", str(tmp_path / name), database_url=database_url)

    assert (done.returncode, done.stdout) == (0, "0 templates imported, 0 lines refused\n")


# ── stops ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_import_says_how_far_all_is_in_and_goes_on_with_the_printed_command(
    database_url, tmp_path, number
):
    data = json_lines(*some_templates(3 * CHUNK))
    file = tmp_path / "Spring sale.jsonl"
    first = b"".join(data.splitlines(keepends=True)[: 2 * CHUNK])
    with slowly_fed(file, first, database_url) as (process, _):
        process.send_signal(number)
        _, printed = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "All up to line 2,000 is done: 2,000 templates imported, 0 lines refused." in printed
    assert "Traceback" not in printed
    file.write_bytes(data)
    assert go_on_as_reported(printed, database_url) == "1,000 templates imported, 0 lines refused\n"
    assert created(database_url) == 3 * CHUNK


def test_an_interrupted_csv_import_goes_on_with_the_same_columns(database_url, tmp_path):
    data = csv_file(*map(cells, some_templates(2 * CHUNK)))
    header, *records = data.splitlines(keepends=True)
    file = tmp_path / "spring"
    os.mkfifo(file)
    with running(database_url, "import", str(file), "--format", "csv", "--json") as process, file.open("wb") as pipe:
        pipe.write(header + b"".join(records[:CHUNK]))
        pipe.flush()
        eventually(lambda: created(database_url) == CHUNK)
        wait_for_reader(pipe)
        process.send_signal(signal.SIGINT)
        out, printed = process.communicate(timeout=30)

    assert json.loads(out) == {"accepted": CHUNK, "over": 0, "refused": 0, "after": CHUNK + 1}
    file.unlink()
    file.write_bytes(data)
    assert json.loads(go_on_as_reported(printed, database_url)) == {"accepted": CHUNK, "over": 0, "refused": 0}
    assert created(database_url) == 2 * CHUNK


def test_standard_input_goes_on_after_a_line_too(database_url):
    templates = some_templates(3)

    done = coupon_clock("import", "-", "--after", "2", database_url=database_url, given=json_lines(*templates))

    assert done.stdout == "1 templates imported, 0 lines refused\n"
    assert ids_created(database_url) == [str(templates[2].template_id)]


def test_killed_in_the_middle_the_same_command_makes_every_template_exactly_once(database_url, tmp_path):
    templates = some_templates(MANY)
    (tmp_path / "many.jsonl").write_bytes(json_lines(*templates))
    with running(database_url, "import", str(tmp_path / "many.jsonl")) as process:
        eventually(lambda: created(database_url) >= CHUNK)
        process.kill()
        process.wait()
    assert created(database_url) < MANY

    done = coupon_clock("import", str(tmp_path / "many.jsonl"), database_url=database_url)

    assert done.stdout == f"{MANY:,} templates imported, 0 lines refused\n"
    assert ids_created(database_url) == sorted(str(template.template_id) for template in templates)


def test_where_postgresql_goes_away_it_says_how_far_all_is_in_and_how_to_go_on(fragile_postgres, tmp_path):
    data = json_lines(*some_templates(3 * CHUNK))
    file = tmp_path / "spring.jsonl"
    lines = data.splitlines(keepends=True)
    with slowly_fed(file, b"".join(lines[:CHUNK]), fragile_postgres.url) as (process, pipe):
        fragile_postgres.kill()
        pipe.write(b"".join(lines[CHUNK : 2 * CHUNK]))
        pipe.flush()
        _, printed = process.communicate(timeout=60)

    assert process.returncode == 2
    assert "PostgreSQL" in printed
    assert "All up to line 1,000 is done" in printed
    fragile_postgres.start()
    file.write_bytes(data)
    assert go_on_as_reported(printed, fragile_postgres.url) == "2,000 templates imported, 0 lines refused\n"
    assert created(fragile_postgres.url) == 3 * CHUNK
