"""All faults together, for a short while; `make chaos` goes on for as long as one likes, and with RocketMQ."""

import pytest

from chaos.run import Options, run

pytestmark = pytest.mark.xdist_group("chaos")

SEEDS = [355]
"""One that has all kinds of faults in 20 seconds, and each that has failed."""


@pytest.mark.parametrize("seed", SEEDS)
def test_the_promise_holds_whatever_fails_for_20_seconds(server_folder, seed):
    folder = server_folder / f"chaos-{seed}"
    folder.mkdir()
    result = run(Options(seed, 20), folder)
    assert result.violations == []
    assert result.figures["notes: acknowledged"] > 100
