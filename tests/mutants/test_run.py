"""Known bugs can still be put back, and one that no test finds is reported."""

import subprocess
from pathlib import Path

import pytest

from mutants import run

PATCHES = sorted(run.FOLDER.glob("*.patch"))
HARMLESS = """Mutant: none at all.
Tests: tests/domain/test_validity.py

--- a/domain/validity.py
+++ b/domain/validity.py
@@ -1 +1 @@
-{first}
+{first} Or so.
"""


@pytest.mark.parametrize("patch", PATCHES, ids=[patch.stem for patch in PATCHES])
def test_each_mutant_still_applies_and_names_tests_that_are_there(patch: Path):
    assert (run.ROOT / run.tests_of(patch).split()[0]).exists()
    subprocess.run(["git", "apply", "--check", str(patch)], cwd=run.ROOT, check=True)


def test_a_mutant_that_survives_is_named_and_the_exit_code_is_1(tmp_path, monkeypatch, capsys):
    first, *_ = (run.ROOT / "domain" / "validity.py").read_text().splitlines()
    (tmp_path / "harmless.patch").write_text(HARMLESS.format(first=first))
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    assert run.main([]) == 1
    assert capsys.readouterr().out.endswith("1 mutants, 1 survived: harmless\n")
