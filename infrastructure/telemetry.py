"""Metrics, in the default Prometheus registry."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Literal, get_args

from prometheus_client import Counter, Gauge, Histogram

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60)

WORK = Counter("coupon_clock_work", "What the loops did", ["role", "what"])
FAILURES = Counter("coupon_clock_failures", "Ticks of a loop that failed and are repeated", ["role"])
LATENESS = Histogram(
    "coupon_clock_lateness_seconds",
    "From the time a stream was due to what that led to being stored, as seen by the loop that did it",
    ["cause"],
    buckets=BUCKETS,
)
HELD = Gauge("coupon_clock_held_messages", "Messages held until the instant")
STAGE = Histogram(
    "coupon_clock_stage_seconds",
    "How late each stage was: armed and delivered, after the lead began; projected, after the event was recorded",
    ["stage"],
    buckets=BUCKETS,
)
GAP_AGE = Gauge("coupon_clock_gap_seconds", "How long a follower's oldest undecided gap has stood", ["follower"])


def count(role: str, counts: Mapping[str, int]) -> None:
    for what, number in counts.items():
        WORK.labels(role, what).inc(number)


def failed(role: str) -> None:
    FAILURES.labels(role).inc()


Stage = Literal["armed", "delivered", "projected"]


STAGES = {stage: STAGE.labels(stage) for stage in get_args(Stage)}


def late(stage: Stage, by: timedelta) -> None:
    STAGES[stage].observe(max(0.0, by.total_seconds()))
