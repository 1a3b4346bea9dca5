"""Handwritten digits (1,797 images of 8 x 8 pixels, UCI) from scikit-learn as `data/digits.csv`.

python prepare.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sklearn.datasets import load_digits

HERE = Path(__file__).parent


def write(folder: Path) -> Path:
    """Write ``digits.csv`` into ``folder`` and return its path.

    Columns: ``image`` (1 to 1797, the key), ``pixel_0_0`` to ``pixel_7_7`` (0 to 16, row and column), and the
    target ``digit`` (0 to 9).
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "digits.csv"
    frame = load_digits(as_frame=True).frame.rename(columns={"target": "digit"})
    frame.insert(0, "image", range(1, len(frame) + 1))
    frame.to_csv(path, index=False)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write scikit-learn's digits as CSV.")
    parser.add_argument("--folder", type=Path, default=HERE / "data")
    print(write(parser.parse_args().folder))


if __name__ == "__main__":
    main()
