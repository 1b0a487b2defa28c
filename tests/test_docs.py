"""What the docs say is what the code says."""

import os
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def made_page() -> str:
    spec = spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.page()


def test_the_api_page_is_what_the_code_says():
    page = (ROOT / "docs" / "api.md").read_text()
    assert page == made_page(), "the code has changed: run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert missing == []


def test_the_code_about_the_eventsourcing_library_runs_as_it_stands(database_url: str, tmp_path: Path):
    given = """
        import os
        from datetime import UTC, datetime, timedelta
        url = os.environ["COUPON_CLOCK_DATABASE_URL"]
        now = datetime.now(UTC)
        remind_at, ends_at = now + timedelta(hours=1), now + timedelta(hours=2)
    """
    page = (ROOT / "docs" / "eventsourcing.md").read_text()
    blocks = [dedent(given), *re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks))

    environment = os.environ | {"COUPON_CLOCK_DATABASE_URL": database_url}
    ran = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=False)

    assert len(blocks) > 5
    assert ran.returncode == 0, ran.stderr
