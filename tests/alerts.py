"""The rules of docs/alerts.yml, and which of them fire: each is a plain comparison of a metric."""

import re
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

RULES = (Path(__file__).parents[1] / "docs" / "alerts.yml").read_text()
RULE = re.compile(r"- alert: (\w+)\n +expr: (\w+)(\{.*?\})? ([<>]) ([\d.]+)\n")
SAMPLE = re.compile(r"^(\w+)(\{.*\})? (\S+)$", re.MULTILINE)
CONDITIONS = {alert: (metric, labels, sign, float(bound)) for alert, metric, labels, sign, bound in RULE.findall(RULES)}


def asked(port: int, path: str) -> tuple[int, str]:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as refused:
        return refused.code, refused.read().decode()


def firing(text: str) -> set[str]:
    """The alerts whose condition holds for some sample, as Prometheus compares them."""
    samples = [(name, labels, float(value)) for name, labels, value in SAMPLE.findall(text)]
    return {
        alert
        for alert, (metric, wanted, sign, bound) in CONDITIONS.items()
        for name, labels, value in samples
        if name == metric and (not wanted or labels == wanted) and (value > bound if sign == ">" else value < bound)
    }
