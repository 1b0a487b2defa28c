"""All of the API can be imported from `coupon_clock`, which by itself loads next to nothing."""

import inspect
import re
import subprocess
import sys

import pytest

import coupon_clock
from coupon_clock import app

LIGHT = """
import sys
import coupon_clock, coupon_clock.domain.coupon_template, coupon_clock.domain.rules
assert "psycopg" not in sys.modules
from coupon_clock import *
assert Application.__name__ == "Application" and "psycopg" in sys.modules
"""
RAISED = re.compile(r"\b[Rr]aises ([^.]*)", re.DOTALL)


@pytest.mark.parametrize("name", app.__all__)
def test_a_public_name_is_the_same_from_both_places(name):
    assert getattr(coupon_clock, name) is getattr(app, name)


@pytest.mark.parametrize("name", ["Nothing", "Pool", "nothing"])
def test_what_is_not_public_cannot_be_imported(name):
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
        getattr(coupon_clock, name)


@pytest.mark.parametrize("kind", [coupon_clock.Application, coupon_clock.Runtime])
def test_every_error_that_a_method_says_it_raises_is_public(kind):
    methods = [each for name, each in inspect.getmembers(kind, callable) if not name.startswith("_")]
    texts = [text for method in methods for text in RAISED.findall(inspect.getdoc(method) or "")]
    errors = {word for text in texts for word in re.findall(r"\b[A-Z][a-z]+[A-Z]\w+", text)} - {"PostgreSQL"}
    assert errors
    assert errors <= set(app.__all__)


def test_the_domain_is_imported_without_postgresql():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
