"""Alembic in the same database proposes nothing about our tables, with the snippet of docs/postgresql.md."""

import re
from pathlib import Path
from typing import Any

import psycopg
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Column, Integer, MetaData, Table, create_engine

from coupon_clock.app import Application, Settings

PAGE = Path(__file__).parent.parent / "docs" / "postgresql.md"
OWN = MetaData()
Table("product", OWN, Column("id", Integer, primary_key=True))


def snippet() -> Any:
    """`include_object` as the page shows it."""
    (code,) = re.findall(r"```python\n(def include_object.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names["include_object"]


def proposed(settings: Settings, **options: Any) -> list[str]:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(settings.database()))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"target_metadata": OWN} | options)
        return [change[0] for change in compare_metadata(context, OWN)]


def test_in_a_schema_of_our_own_nothing_is_proposed_even_without_the_snippet(settings):
    assert proposed(settings) == ["add_table"]


def test_with_all_schemas_included_the_snippet_keeps_ours_out(settings):
    assert "remove_table" in proposed(settings, include_schemas=True)
    assert proposed(settings, include_schemas=True, include_object=snippet()) == ["add_table"]


def test_in_public_the_snippet_keeps_ours_out(settings):
    public = Settings.load(database_url=settings.database(), database_schema="public")
    Application.migrate(public)
    assert "remove_table" in proposed(public)
    assert proposed(public, include_object=snippet()) == ["add_table"]
