"""What the layout promises and no import contract can say."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TABLES = (
    "event|alarm|checkpoint|rejected_message|schema_migration|cluster_identity|rebuild_chunk|coupon_template|shop_month"
)
UNQUALIFIED = re.compile(rf"\b(FROM|INTO|UPDATE|JOIN|TABLE|DELETE FROM) (ONLY )?({TABLES})\b(?!\s*\()")


def sources(*folders: str) -> list[Path]:
    found = [ROOT / folder for folder in folders if folder.endswith(".py")]
    for folder in folders:
        found += [file for kind in ("*.py", "*.sql") for file in (ROOT / folder).rglob(kind)]
    assert found
    return found


ENGINE = ("deadlines.py", "runtime.py", "persistence.py", "aggregates.py")


def test_the_engine_knows_no_coupon():
    coupon = re.compile("coupon.?template|shop", re.IGNORECASE)
    found = [file.name for file in sources("infrastructure", *ENGINE) if coupon.search(file.read_text())]
    assert found == []


def test_the_domain_has_no_word_about_the_database_or_projectors():
    word = re.compile("postgres|psycopg|projector|sql", re.IGNORECASE)
    assert [file.name for file in sources("domain") if word.search(file.read_text())] == []


def test_every_statement_names_the_schema_of_its_tables():
    for file in sources("infrastructure", "projections", "maintenance", *ENGINE, "app.py"):
        statements = re.findall(r'"""(.*?)"""|"([^"\n]*)"', file.read_text(), re.DOTALL)
        for text in (first or second for first, second in statements):
            assert not UNQUALIFIED.search(text), (file.name, text)


def test_nothing_depends_on_the_search_path():
    own = "SET search_path = pg_catalog, pg_temp"
    files = [*sources("infrastructure", "projections", "maintenance"), *ROOT.glob("infrastructure/event_store/*.sql")]
    assert [file.name for file in files if "search_path" in file.read_text().replace(own, "")] == []


def test_nothing_sets_anything_of_a_session():
    of_session = re.compile(r'execute\("SET (?!LOCAL)|set_config\([^)]*false\)|pg_(try_)?advisory_lock')
    files = sources("infrastructure", "projections", "maintenance")
    assert [(file.name, found.group()) for file in files if (found := of_session.search(file.read_text()))] == []


def test_examples_import_nothing_from_the_inside():
    inside = re.compile(r"from coupon_clock\.(infrastructure|domain|projections|maintenance|runtime)")
    assert [file.name for file in (ROOT / "examples").glob("*.py") if inside.search(file.read_text())] == []
