"""Coupon templates that end: RocketMQ where COUPON_CLOCK_ROCKETMQ_ENDPOINTS is set, else the broker in the process.

All settings are the defaults. One process runs all roles.
"""

import signal
from collections.abc import Sequence
from threading import Event
from uuid import UUID, uuid4

import psycopg
from job import DATABASE_URL, aware, main

from coupon_clock import (
    Application,
    ConsumeRule,
    CouponClockError,
    CreateCouponTemplate,
    ReceiveRule,
    Settings,
    ThresholdAmount,
)
from coupon_clock.infrastructure.loop import tune_interpreter

# The first template's id is that of job 0, and so on.
FIRST = UUID("01890000-0000-7000-8000-000000000000").int
COLLECT = """
INSERT INTO done
SELECT ('x' || right(originator_id::text, 8))::bit(32)::int, recorded_at
  FROM coupon_clock.event WHERE topic = 'CouponTemplate.Ended'
"""


def schedule(times: Sequence[float]) -> None:
    now = aware(min(times) - 3600)
    with Application.open(Settings.load(database_url=DATABASE_URL)) as app:
        commands = [
            CreateCouponTemplate(
                command_id=uuid4(),
                template_id=UUID(int=FIRST + n),
                shop_number=1,
                name="Spring sale",
                source="shop",
                target="all_products",
                discount=ThresholdAmount(minimum_spend=1_000, amount_off=300),
                receive_rule=ReceiveRule(limit_per_person=10),
                consume_rule=ConsumeRule(hours_after_claim=48),
                valid_from=now,
                valid_until=aware(at),
                stock=100,
            )
            for n, at in enumerate(times)
        ]
        for outcome in app.execute_many(commands):
            if isinstance(outcome, CouponClockError):
                raise outcome


def work() -> None:
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with Application.open(Settings.load(database_url=DATABASE_URL)) as app:
        tune_interpreter()
        with app.running():
            stop.wait()


def collect() -> None:
    with psycopg.connect(DATABASE_URL, autocommit=True) as connection:
        connection.execute(COLLECT)


if __name__ == "__main__":
    main(schedule, work, collect)
