import sys
from pathlib import Path

DEMO = Path(__file__).parents[3] / "examples" / "demo"

sys.path.insert(0, str(DEMO))  # tests import its modules by name
