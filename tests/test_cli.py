"""The command line as a user meets it: a process of its own, its output and its exit code."""

import json
import signal
from datetime import timedelta
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from command_line import coupon_clock, running
from coupon_clock.domain.events import Ended
from coupon_clock.infrastructure.messaging.broker import Delivery
from coupon_clock.infrastructure.messaging.messages import ExpiryDue, to_wire
from examples import SHOP, ending_in
from waiting import eventually


@pytest.mark.parametrize(
    ("arguments", "database_url", "says"),
    [
        (["verify"], "", "COUPON_CLOCK_DATABASE_URL is not set"),
        (["verify"], "postgresql://nobody@127.0.0.1:1/nothing", "PostgreSQL cannot be used"),
        (["verify"], "nonsense", "COUPON_CLOCK_DATABASE_URL: must be postgresql://"),
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


def test_verify_finds_what_rebuild_repairs(live, database_url):
    template = ending_in(3600)
    outcome = live.execute(template)
    with live.running():
        live.find(SHOP, template.template_id, at_least=outcome.position)
    with live.database.connection() as connection:
        connection.execute("UPDATE coupon_clock.coupon_template SET stock = 7")

    found = coupon_clock("verify", "--json", database_url=database_url)
    assert found.returncode == 1
    promise, difference = map(json.loads, found.stdout.splitlines())
    assert (promise["violation_count"], difference["column"]) == (0, "stock")
    assert coupon_clock("verify", "alarms", database_url=database_url).returncode == 0
    assert coupon_clock("verify", "rows", "shop_month", database_url=database_url).returncode == 0
    assert coupon_clock("verify", "promise", "coupon_template", database_url=database_url).returncode == 2

    assert coupon_clock("rebuild", database_url=database_url).returncode == 0
    assert coupon_clock("verify", database_url=database_url).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_ends_templates_until_a_signal_comes(live, database_url, number):
    template = ending_in(1.5)
    live.execute(template)
    with running(database_url, "run") as process:
        eventually(lambda: isinstance(live.history(SHOP, template.template_id)[-1].event, Ended))
        process.send_signal(number)
        assert process.wait(timeout=30) == 0


def test_verify_promise_reports_what_ended_and_verify_alarms_what_is_surplus(live, database_url):
    template = ending_in(0.01)
    live.execute(template)
    eventually(lambda: not live.is_usable(SHOP, template.template_id))
    with live.running(["reconciler"]):
        eventually(lambda: isinstance(live.history(SHOP, template.template_id)[-1].event, Ended))

    done = coupon_clock("verify", "promise", "--json", database_url=database_url)
    assert done.returncode == 0
    assert json.loads(done.stdout)["ended"] == {"expired": 1}

    with live.database.connection() as connection:
        connection.execute("INSERT INTO coupon_clock.alarm VALUES (gen_random_uuid(), now())")
    assert coupon_clock("verify", "promise", database_url=database_url).returncode == 0
    done = coupon_clock("verify", "alarms", database_url=database_url)
    assert done.returncode == 1
    assert "coupon-clock rebuild alarm" in done.stdout


def test_rejected_messages_are_listed_retried_and_dropped(live, database_url):
    template = ending_in(3600)
    live.execute(template)
    due = to_wire(ExpiryDue(template.template_id, template.valid_until))
    unreadable = Delivery("2", b"\xff\x00\x1b[2J" + 9_999 * b" ", None)
    live.runtime.deadlines.rejected.add(
        [(Delivery("1", due, None), "rejected for a test"), (unreadable, "no \x1b[2J\x00 JSON")]
    )

    listed = coupon_clock("rejected", "list", "--json", database_url=database_url)
    assert listed.returncode == 1
    assert [json.loads(line)["message_id"] for line in listed.stdout.splitlines()] == ["1", "2"]

    shown = coupon_clock("rejected", "list", "--reason", "no ", database_url=database_url).stdout
    assert ("\x1b" in shown, "of 10,005 bytes" in shown, "rejected for a test" in shown) == (False, True, False)

    retried = coupon_clock("rejected", "retry", "--reason", "TEST", database_url=database_url)
    assert (retried.returncode, retried.stdout) == (0, "1 settled, 0 left\n")
    retried = coupon_clock("rejected", "retry", database_url=database_url)
    assert (retried.returncode, retried.stdout) == (1, "0 settled, 1 left\n")

    assert coupon_clock("rejected", "drop", database_url=database_url).returncode == 2
    assert coupon_clock("rejected", "drop", "--all", database_url=database_url).stdout == "1 dropped\n"
    assert coupon_clock("rejected", "list", database_url=database_url).returncode == 0


def test_rearm_marks_every_alarm_unarmed(live, database_url):
    live.execute_many([ending_in(3600) for _ in range(3)])
    with live.database.connection() as connection:
        connection.execute("UPDATE coupon_clock.alarm SET armed_at = now()")

    assert coupon_clock("rearm", database_url=database_url).stdout.startswith("3 alarms")
    assert len(live.runtime.deadlines.alarms.claim(timedelta(hours=2), 10)) == 3


# ── schema ───────────────────────────────────────────────────────────────────────────────────────


def test_every_event_ever_stored_fits_the_printed_schema_and_others_do_not():
    printed = coupon_clock("schema", "events")
    assert printed.returncode == 0, printed.stderr
    stored = Draft202012Validator(json.loads(printed.stdout))

    golden = (Path(__file__).parent / "domain" / "golden" / "events.jsonl").read_bytes().splitlines()
    for event in map(json.loads, golden):
        stored.validate(event)
        assert not stored.is_valid(event | {"shop_number": "one"})
        assert not stored.is_valid({name: value for name, value in event.items() if name != "type"})
