"""What a process did and saw, a line of JSON each. What was written survives the process, not the machine."""

import json
import os
from pathlib import Path
from time import time
from typing import Any


class Journal:
    """Safe to use from several threads: each line is one call of the operating system."""

    def __init__(self, file: Path) -> None:
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def note(self, what: str, **more: Any) -> None:
        """With the host's time, which is PostgreSQL's, as long as nothing steps that."""
        line = json.dumps({"what": what, "at": time()} | more, default=str)
        os.write(self._descriptor, line.encode() + b"\n")
