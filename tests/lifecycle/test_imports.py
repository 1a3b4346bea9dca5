"""What a plan must not import: each of these would cost it a good part of its second."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"numpy", "pandas", "pyarrow", "duckdb", "scipy", "sklearn", "optuna", "onnxruntime", "alembic"}


def test_a_plan_imports_nothing_that_reads_or_trains() -> None:
    code = f"import sys, modelkeep.lifecycle.plan; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
