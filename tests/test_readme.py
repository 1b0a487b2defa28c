"""What README and docs show runs as written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import coupon_clock

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_ten_lines_of_the_readme_run_as_written(name, database_url):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    environment = os.environ | {"COUPON_CLOCK_DATABASE_URL": database_url}

    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert "Spring sale active" in done.stdout


@pytest.mark.parametrize("data_format", ["json", "csv"])
def test_the_documented_line_of_each_format_can_be_imported(data_format, database_url):
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "docs" / "importing.md").read_text(encoding="utf-8"), re.DOTALL)
    first = {"json": '{"command_id"', "csv": "command_id,"}[data_format]
    (lines,) = (block for block in blocks if block.startswith(first))

    done = coupon_clock("import", "-", "--format", data_format, database_url=database_url, given=lines.encode())

    assert (done.returncode, done.stdout) == (0, "1 templates imported, 0 lines refused\n"), done.stderr
