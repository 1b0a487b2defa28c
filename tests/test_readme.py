"""The README's lines run as written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_ten_lines_of_the_readme_run_as_written(name, database_url):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    environment = os.environ | {"COUPON_CLOCK_DATABASE_URL": database_url}

    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert "Spring sale active" in done.stdout
