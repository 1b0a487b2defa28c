"""Histories of any order, one after the other for some seconds, each from an empty database.

`pytest tests/state_machine --hypothesis-seed=N` begins with that seed; CI always begins with 0. With the profile `long`
it takes ten minutes; with `first`, what is found is reported as it is, and not made smaller.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import SystemRandom
from time import monotonic

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from state_machine.machine import CouponTemplates, World

SECONDS = {"long": 600.0, "first": 180.0}
USUAL_SECONDS = 20.0
EXAMPLES_A_ROUND = 8
STEPS = 40


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with ExitStack() as open_until:
        yield World(database_url, open_until)


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # the pool's threads do, as time goes by
def test_whatever_happens_in_whatever_order_the_promises_hold(world: World, pytestconfig: pytest.Config):
    profile = pytestconfig.getoption("--hypothesis-profile")
    phases = [Phase.generate] if profile == "first" else [Phase.generate, Phase.shrink]
    first = first_seed(pytestconfig)
    number, until = first, monotonic() + SECONDS.get(profile, USUAL_SECONDS)
    try:
        while monotonic() < until:
            examine(world, number, phases)
            number += 1
    finally:
        print(f"seeds {first} to {number}; seen: {dict(sorted(world.seen.items()))}")


def examine(world: World, number: int, phases: list[Phase]) -> None:
    """A round of examples, which this seed makes again."""

    class Round(CouponTemplates):
        pass

    Round.world = world
    seed(number)(Round)
    run_state_machine_as_test(
        Round,
        settings=settings(
            max_examples=EXAMPLES_A_ROUND,
            stateful_step_count=STEPS,
            phases=phases,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def first_seed(config: pytest.Config) -> int:
    given = config.getoption("--hypothesis-seed")
    if given is not None:
        return int(given)
    return 0 if os.environ.get("CI") else SystemRandom().randrange(1_000_000)


def test_the_model_shares_no_code_with_the_product():
    for file in ("model.py", "stored.py"):
        assert "import coupon_clock" not in (text := (Path(__file__).parent / file).read_text())
        assert "from coupon_clock" not in text
