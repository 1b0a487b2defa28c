"""Alembic in the same database proposes nothing about our tables, with the snippet of docs/postgresql.md."""

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Column, Integer, MetaData, Table, create_engine

from coupon_clock.app import Application, Settings

PAGE = Path(__file__).parent.parent / "docs" / "postgresql.md"
OWN = MetaData()
Table("product", OWN, Column("id", Integer, primary_key=True))


def snippet(schema: str = "coupon_clock") -> Any:
    """`include_object` as the page shows it."""
    (code,) = re.findall(r"```python\n(SCHEMA = .*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace('"coupon_clock"', repr(schema), 1), names)
    return names["include_object"]


def proposed(settings: Settings, metadata: MetaData = OWN, **options: Any) -> list[str]:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(settings.database()))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"target_metadata": metadata} | options)
        # A table is the second of what was found about it; of a column, the third is the table's name.
        found = compare_metadata(context, metadata)
        return sorted(f"{change[0]} {change[2] if change[1] is None else change[1].name}" for change in found)


def execute(settings: Settings, *statements: str) -> None:
    with psycopg.connect(settings.database()) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture
def in_public(settings: Settings) -> Settings:
    public = Settings.load(database_url=settings.database(), database_schema="public")
    Application.migrate(public)
    return public


def test_in_a_schema_of_our_own_nothing_is_proposed_even_without_the_snippet(settings):
    assert proposed(settings) == ["add_table product"]


def test_with_all_schemas_included_the_snippet_keeps_ours_out(settings):
    assert "remove_table event" in proposed(settings, include_schemas=True)
    assert proposed(settings, include_schemas=True, include_object=snippet()) == ["add_table product"]


def test_in_public_the_snippet_keeps_ours_out(in_public):
    execute(in_public, "CREATE TABLE public.coupon_template_shadow (id int)", "CREATE TABLE public.event_old (id int)")
    assert "remove_table event" in proposed(in_public)
    found = proposed(in_public, include_object=snippet("public"))
    assert found == ["add_table product", "remove_table event_old"]


@pytest.mark.parametrize("include_schemas", [False, True])
def test_tables_of_the_same_names_elsewhere_are_compared_as_always(settings, include_schemas):
    execute(settings, "CREATE TABLE public.event (id integer PRIMARY KEY)", "CREATE TABLE public.alarm (id integer)")
    metadata = MetaData()
    Table("event", metadata, Column("id", Integer, primary_key=True), Column("price", Integer))
    found = proposed(settings, metadata, include_schemas=include_schemas, include_object=snippet())
    assert found == ["add_column event", "remove_table alarm"]
