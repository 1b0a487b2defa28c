"""A log with some of everything in it, and ways to look at what derives from it."""

from typing import Any
from uuid import UUID

import psycopg

from coupon_clock.testing import TestApplication
from examples import EVENING, NOON, OTHER_SHOP, SHOP, a_template, change, increase, terminate


def given_a_history(app: TestApplication, templates: int = 12) -> list[UUID]:
    """Half of them ended, one way or the other; everything applied. Returns their ids."""
    made = [a_template(shop_number=(SHOP, OTHER_SHOP)[n % 2], name=f"Sale {n} ü") for n in range(templates)]
    app.execute_many(made)
    for n, template in enumerate(made):
        shop = {"shop_number": template.shop_number}
        if n % 3 == 0:
            app.execute(increase(template.template_id, **shop))
        if n % 4 == 1:
            app.execute(change(template.template_id, until=EVENING, **shop))
        if n % 4 == 2:
            app.execute(terminate(template.template_id, **shop))
    app.clock.set(NOON)
    app.run_due()
    return [template.template_id for template in made]


def rows(database_url: str, table: str = "coupon_template") -> list[Any]:
    with psycopg.connect(database_url) as connection:
        return connection.execute(f"SELECT * FROM coupon_clock.{table} ORDER BY 1, 2").fetchall()


def run_sql(database_url: str, statement: str, *parameters: object) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(statement, parameters)


def value(database_url: str, statement: str) -> Any:
    with psycopg.connect(database_url) as connection:
        found = connection.execute(statement).fetchone()
    return found[0] if found else None


def append_unreadable(database_url: str) -> None:
    run_sql(
        database_url,
        "INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state) "
        """VALUES (gen_random_uuid(), 1, 'CouponTemplate.Folded', '{"type":"CouponTemplate.Folded"}')""",
    )
