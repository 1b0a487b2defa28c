"""docs/api.md says where everything comes from, and how it is called."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from coupon_clock.domain.errors import CouponClockError

PAGE = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
BY_HEADING = {section.partition("\n")[0]: section for section in SECTIONS}
ERROR = re.compile(r"^\| `(\w+)` \| `([\w.]+)` \|", re.MULTILINE)


def imports(section: str) -> str:
    block = re.search(r"```python\n(from .*?)```", section, re.DOTALL)
    return block[1] if block else ""


@pytest.mark.parametrize("heading", [heading for heading in BY_HEADING if heading not in ("Errors", "Settings")])
def test_a_section_begins_with_the_imports_of_all_that_it_shows(heading):
    section, found = BY_HEADING[heading], {}
    exec(imports(section), found)
    shown = re.findall(r"^### `(\w+)", section, re.MULTILINE)
    assert [name for name in shown if name not in found] == []


def test_every_error_is_in_the_module_named():
    rows = ERROR.findall(BY_HEADING["Errors"])
    errors = [getattr(import_module(f"coupon_clock.{module}"), name) for name, module in rows]
    assert len(errors) > 50
    assert [error for error in errors if not issubclass(error, CouponClockError)] == []


def test_errors_of_an_import_and_those_with_a_name_that_others_have_too_are_listed():
    assert {"FileUnreadable", "HeaderUnusable", "RocketMQRefused"} <= {
        name for name, _ in ERROR.findall(BY_HEADING["Errors"])
    }


def test_a_context_manager_is_shown_with_what_it_gives():
    assert "\nwith throw_away_database(server_url: str) -> str\n" in PAGE
    assert re.search(r"^with open_test_application\(.* -> TestApplication$", PAGE, re.MULTILINE)
    assert len(re.findall(r"^with running\([^)]*\) -> (None|Parts)$", PAGE, re.MULTILINE)) == 2
