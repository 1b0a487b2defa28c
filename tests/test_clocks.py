"""Clocks that step, and hosts that disagree: never early, ended once, and no loop spins.

Only PostgreSQL's clock and the host's monotonic one are used. So a step is one of PostgreSQL's, and a host whose wall
clock is wrong is no different from others.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from prometheus_client import REGISTRY

from coupon_clock.app import Application, Settings
from examples import SHOP, ending_in
from serving import variables
from waiting import eventually

TOPIC = GROUP = "clocks"
TEMPLATES, EVERY_S = 40, 0.25
"""They come due so far apart."""
STEP_S = 2
A_CYCLE = int(STEP_S / EVERY_S) + 4
"""Templates that come due in a step forward, and between steps."""

STEPPING = """
CREATE TABLE public.clock_step (seconds float8 NOT NULL);
INSERT INTO public.clock_step VALUES (0);
CREATE OR REPLACE FUNCTION coupon_clock.now_utc() RETURNS timestamptz LANGUAGE sql VOLATILE
    AS 'SELECT clock_timestamp() + make_interval(secs => (SELECT seconds FROM public.clock_step))';
"""

# Changes the built-in type itself: all modules, those in C too, hold that very type.
WRONG_CLOCK = """
import ctypes, datetime, gc, time

real_now, real_time, ahead = datetime.datetime.now, time.time, {ahead}

def now(tz=None):
    return real_now(tz) + datetime.timedelta(seconds=ahead)

gc.get_referents(datetime.datetime.__dict__)[0]["now"] = staticmethod(now)
ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))
time.time = lambda: real_time() + ahead
"""


@pytest.fixture(params=["memory", pytest.param("rocketmq", marks=pytest.mark.rocketmq)])
def settings(request: pytest.FixtureRequest, database_url: str) -> Settings:
    if request.param == "memory":
        return Settings.load(database_url=database_url)
    rocketmq = request.getfixturevalue("rocketmq")
    rocketmq.provision(TOPIC, GROUP)
    given = {"rocketmq_endpoints": rocketmq.endpoints, "rocketmq_topic": TOPIC, "rocketmq_group": GROUP}
    return Settings.load(database_url=database_url, lead=4, **given)


def test_postgresqls_clock_steps_to_and_fro_while_templates_come_due(settings):
    armed, too_early = work("relay", "armed"), work("consumer", "not_due")
    with Application.open(settings) as app, stepping(settings) as step, app.running():
        app.execute_many([ending_in(3 + n * EVERY_S) for n in range(TEMPLATES)])
        for cycle in range(3):
            left = TEMPLATES - 2 - cycle * A_CYCLE
            eventually(lambda left=left: unfinished(app) <= left)
            step(STEP_S)
            eventually(lambda left=left: unfinished(app) <= left + 2 - A_CYCLE)
            step(0)
        eventually(lambda: unfinished(app) == 0)
        then_the_promise_holds(app)
    assert work("relay", "armed") - armed <= 2 * TEMPLATES
    assert work("consumer", "not_due") - too_early <= TEMPLATES


@pytest.mark.parametrize("ahead", [2, -2])
def test_a_host_whose_clock_is_wrong_ends_templates_at_their_ends(database_url, tmp_path, ahead):
    settings = Settings.load(database_url=database_url)
    with Application.open(settings) as app, a_host(settings, tmp_path, ahead):
        templates = [ending_in(2 + n / 20) for n in range(20)]
        app.execute_many(templates)
        eventually(lambda: unfinished(app) == 0)
        then_the_promise_holds(app)
        assert {app.history(SHOP, t.template_id)[-1].cause for t in templates} == {"message"}


def then_the_promise_holds(app: Application) -> None:
    report = app.maintenance.verify_promise()
    assert not report.found_something
    assert report.ended == {"expired": report.streams}


@contextmanager
def stepping(settings: Settings) -> Iterator[Callable[[float], object]]:
    """Call it with the seconds that PostgreSQL's clock shall be ahead of what it was."""
    with psycopg.connect(settings.database(), autocommit=True) as connection:
        connection.execute(STEPPING)
        yield lambda seconds: connection.execute("UPDATE public.clock_step SET seconds = %s", (seconds,))


@contextmanager
def a_host(settings: Settings, folder: Path, ahead: float) -> Iterator[None]:
    """`coupon-clock run` where the wall clock, and only that, is so many seconds ahead. `folder`: an empty one."""
    (folder / "sitecustomize.py").write_text(WRONG_CLOCK.format(ahead=ahead))
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    environment = os.environ | variables(settings) | {"PYTHONPATH": path, "COUPON_CLOCK_LOG_FORMAT": "text"}
    command = [sys.executable, "-m", "coupon_clock.cli"]
    doctor = subprocess.run([*command, "doctor"], env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"([\d.]+) s (ahead of|behind) PostgreSQL's", doctor.stdout)
    assert found
    assert (round(float(found[1])), found[2]) == (abs(ahead), "ahead of" if ahead > 0 else "behind")
    log = folder / "log"
    process = subprocess.Popen([*command, "run"], env=environment, stderr=log.open("wb"))
    try:
        eventually(lambda: "action=start" in log.read_text())
        yield
    finally:
        process.kill()
        process.wait()


def unfinished(app: Application) -> int:
    """How many templates have not ended."""
    with app.database.connection() as connection:
        row = connection.execute("SELECT count(*) FROM coupon_clock.alarm").fetchone()
    return int(row[0]) if row else 0


def work(role: str, what: str) -> float:
    """What the loops of this process did so far."""
    return REGISTRY.get_sample_value("coupon_clock_work_total", {"role": role, "what": what}) or 0.0
