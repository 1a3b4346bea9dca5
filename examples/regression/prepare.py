"""The diabetes set (Efron et al., 2004: 442 patients) from scikit-learn as `data/diabetes.csv`, in its own units.

python prepare.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sklearn.datasets import load_diabetes

HERE = Path(__file__).parent


def write(folder: Path) -> Path:
    """Write ``diabetes.csv`` into ``folder`` and return its path.

    Columns: ``patient`` (1 to 442, the key), ``age`` in years, ``sex`` (1 or 2), ``bmi``, ``bp`` (blood pressure),
    ``s1`` to ``s6`` (blood serum), and the target ``progression``: of the disease after one year, 25 to 346.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "diabetes.csv"
    frame = load_diabetes(as_frame=True, scaled=False).frame.rename(columns={"target": "progression"})
    frame.insert(0, "patient", range(1, len(frame) + 1))
    frame.to_csv(path, index=False)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write scikit-learn's diabetes set as CSV.")
    parser.add_argument("--folder", type=Path, default=HERE / "data")
    print(write(parser.parse_args().folder))


if __name__ == "__main__":
    main()
