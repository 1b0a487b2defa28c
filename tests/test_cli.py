"""The command line as a user meets it: a process of its own, its output and its exit code."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
from deadlines import eventually
from examples import SHOP, a_template, ending_in

from coupon_clock.app import Application, Settings
from coupon_clock.domain.events import Ended


def coupon_clock(*arguments: str, database_url: str = "", given: bytes = b"") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        env=environment(database_url),
        input=given.decode(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "coupon_clock.cli", *arguments]


def environment(database_url: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COUPON_CLOCK_")}
    return kept | ({"COUPON_CLOCK_DATABASE_URL": database_url} if database_url else {})


@contextmanager
def running(database_url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command("run", *arguments), env=environment(database_url), stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def lines(*templates: object) -> bytes:
    return b"".join(msgspec.json.encode(template) + b"\n" for template in templates)


@pytest.mark.parametrize(
    ("arguments", "database_url", "says"),
    [
        (["verify"], "", "COUPON_CLOCK_DATABASE_URL is not set"),
        (["verify"], "postgresql://nobody@127.0.0.1:1/nothing", "PostgreSQL cannot be used"),
        (["verify"], "nonsense", "PostgreSQL cannot be used"),
        (["run", "--role", "cook"], "", "cook is not a role"),
        (["import", "no-such-file"], "", "cannot be read"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(arguments, database_url, says):
    done = coupon_clock(*arguments, database_url=database_url)

    assert done.returncode == 2
    assert says in " ".join(done.stderr.replace("│", "").split())
    assert "Traceback" not in done.stderr


def test_a_database_without_tables_names_the_command_that_makes_them(postgres):
    done = coupon_clock("verify", database_url=postgres.url)

    assert done.returncode == 2
    assert "coupon-clock migrate" in done.stderr


def test_a_role_without_its_partner_is_refused_where_the_broker_is_in_process(database_url):
    done = coupon_clock("run", "--role", "consumer", database_url=database_url)

    assert done.returncode == 2
    assert "ROCKETMQ_ENDPOINTS" in done.stderr


def test_import_takes_the_good_lines_and_names_the_bad_ones(database_url):
    template = a_template(valid_until=a_template().valid_until.replace(year=8000))
    bad = lines(template).replace(b'"stock":100', b'"stock":"many"')
    unruly = lines(msgspec.structs.replace(template, template_id=a_template().template_id, name=" "))

    done = coupon_clock("import", "-", database_url=database_url, given=lines(template) + bad + b"\n{\n" + unruly)

    assert done.returncode == 1
    assert done.stdout == "1 templates imported, 3 lines refused\n"
    reasons = done.stderr.splitlines()
    assert [reason.split(":")[0] for reason in reasons] == ["line 2", "line 4", "line 5"]
    assert "$.stock" in reasons[0]
    assert "name" in reasons[2]


def test_importing_the_same_file_again_changes_nothing(database_url):
    given = lines(*(ending_in(3600) for _ in range(10)))
    for _ in range(2):
        done = coupon_clock("import", "-", "--json", database_url=database_url, given=given)
        assert json.loads(done.stdout) == {"accepted": 10, "refused": 0}

    with Application.open(Settings.load(database_url=database_url)) as app, app.pool.connection() as connection:
        assert connection.execute("SELECT count(*) FROM coupon_template_events").fetchone() == (10,)


def test_verify_finds_what_rebuild_mends(live, database_url):
    template = ending_in(3600)
    outcome = live.execute(template)
    with live.running():
        live.find(SHOP, template.template_id, at_least=outcome.position)
    with live.pool.connection() as connection:
        connection.execute("UPDATE coupon_template SET stock = 7")

    found = coupon_clock("verify", "--json", database_url=database_url)
    assert found.returncode == 1
    assert json.loads(found.stdout)["column"] == "stock"

    assert coupon_clock("rebuild", database_url=database_url).returncode == 0
    assert coupon_clock("verify", database_url=database_url).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_ends_templates_until_it_is_told_to_stop(live, database_url, number):
    template = ending_in(1.5)
    live.execute(template)
    with running(database_url) as process:
        eventually(lambda: isinstance(live.history(SHOP, template.template_id)[-1].event, Ended))
        process.send_signal(number)
        assert process.wait(timeout=30) == 0
