"""How fast, and in how much memory: `python -m benchmarks`. Each claim is measured beside what it is compared with."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))      # the memory watch, and the costs of lessons
