"""The kits of other folders: a home with a control server, and a serving process."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("safety", "serve")]
