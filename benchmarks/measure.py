"""What the benchmarks share: real servers, templates to fill a log with, and how figures are printed.

A figure is a line on stdout, progress goes to stderr. Absolute values move with the machine and its load; the ratio
to a reference measured in the same run holds.
"""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from typing import NamedTuple
from uuid import UUID, uuid4

from rich.console import Console

from coupon_clock.app import Application, ConsumeRule, CreateCouponTemplate, ReceiveRule, Settings, ThresholdAmount
from coupon_clock.infrastructure.logs import log_to_stderr
from coupon_clock.infrastructure.progress import shown_progress
from coupon_clock.local_servers.servers import BrokerKind, LocalServers, temporary_servers
from coupon_clock.testing import throw_away_database

SHOP = 1
FILL = 5_000
"""Templates in one call of `execute_many`."""


class Figure(NamedTuple):
    """`reference`: the same thing done by others, in the same run; `ratio`: value to reference; `ok`: target met."""

    name: str
    value: float
    unit: str
    reference: float | None = None
    ratio: float | None = None
    target: str | None = None
    ok: bool | None = None


def at_most(name: str, value: float, unit: str, target: float | None, reference: float | None = None) -> Figure:
    ok = None if target is None else value <= target
    return _figure(name, value, unit, reference, None if target is None else f"≤ {target:g}", ok)


def at_least(name: str, value: float, unit: str, target: float | None, reference: float | None = None) -> Figure:
    ok = None if target is None else value >= target
    return _figure(name, value, unit, reference, None if target is None else f"≥ {target:g}", ok)


def at_most_times(name: str, value: float, unit: str, reference: float, most: float) -> Figure:
    """The target is a ratio."""
    return _figure(name, value, unit, reference, f"≤ {most:g} times", value <= most * reference)


def at_least_times(name: str, value: float, unit: str, reference: float, least: float) -> Figure:
    """The target is a ratio."""
    return _figure(name, value, unit, reference, f"≥ {least:g} times", value >= least * reference)


def _figure(name: str, value: float, unit: str, reference: float | None, target: str | None, ok: bool | None) -> Figure:
    ratio = round(value / reference, 3) if reference else None
    return Figure(name, _rounded(value), unit, None if reference is None else _rounded(reference), ratio, target, ok)


def _rounded(value: float) -> float:
    """Four digits that count."""
    return float(f"{value:.4g}")


def _in_words(figure: Figure) -> str:
    words = f"{figure.name}: {figure.value:g} {figure.unit}"
    if figure.target:
        words += f" (target {figure.target}{'' if figure.ok else ', MISSED'})"
    if figure.reference is not None:
        words += f", reference {figure.reference:g}"
    if figure.ratio is not None:
        words += f", ratio {figure.ratio:g}"
    return words


def say(what: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {what}", file=sys.stderr, flush=True)  # noqa: DTZ005 - for a person's eyes


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed."""
    return sorted(values)[max(0, ceil(len(values) * share) - 1)]


def arguments(about: str | None, measures: Iterable[str] = ()) -> ArgumentParser:
    """Of every benchmark; from here on nothing but figures goes to stdout. `measures`: some of these can be named."""
    log_to_stderr()
    parser = ArgumentParser(description=about)
    if measures:
        parser.add_argument("measures", nargs="*", choices=[*measures, []], help="by default all")
    parser.add_argument("--json", action="store_true", help="one JSON object a figure, on stdout")
    return parser


def tell(figures: Iterable[Figure], as_json: bool) -> int:
    """Each as it comes. Returns the exit code: 1 where a target was missed."""
    missed = 0
    for figure in figures:
        print(json.dumps(figure._asdict(), ensure_ascii=False) if as_json else _in_words(figure), flush=True)
        missed |= figure.ok is False
    return missed


@contextmanager
def servers(broker: BrokerKind) -> Iterator[LocalServers]:
    """Throw-away ones, for as long as the block lasts."""
    with (
        TemporaryDirectory(prefix="coupon-clock-benchmark-", ignore_cleanup_errors=True) as folder,
        shown_progress(Console(stderr=True)) as progress,
        temporary_servers(Path(folder), broker, progress) as running,
    ):
        yield running


@contextmanager
def application(server_url: str, **settings: object) -> Iterator[Application]:
    """On a database of its own."""
    with (
        throw_away_database(server_url) as url,
        Application.open(Settings.load(database_url=url, **settings)) as app,
    ):
        yield app


def template(valid_until: datetime, shop_number: int = SHOP) -> CreateCouponTemplate:
    return CreateCouponTemplate(
        command_id=uuid4(),
        template_id=uuid4(),
        shop_number=shop_number,
        name="Spring sale",
        source="shop",
        target="all_products",
        discount=ThresholdAmount(minimum_spend=1_000, amount_off=300),
        receive_rule=ReceiveRule(limit_per_person=10),
        consume_rule=ConsumeRule(hours_after_claim=48),
        valid_from=datetime.now(UTC),
        valid_until=valid_until,
        stock=100,
    )


def create(app: Application, ends: Sequence[datetime], shop_number: int = SHOP) -> list[UUID]:
    """One template for each of these ends; returns their ids."""
    template_ids = []
    for start in range(0, len(ends), FILL):
        for outcome in app.execute_many([template(end, shop_number) for end in ends[start : start + FILL]]):
            if isinstance(outcome, Exception):
                raise outcome
            template_ids.append(outcome.template_id)
    return template_ids


def sleep_until(instant: datetime) -> None:
    sleep(max(0.0, (instant - datetime.now(UTC)).total_seconds()))


def seconds(call: Callable[[], object]) -> float:
    """How long it takes."""
    started = perf_counter()
    call()
    return perf_counter() - started
