"""Wisconsin's breast cancer set (569 patients, UCI) from scikit-learn as `data/cancer.csv`.

python prepare.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sklearn.datasets import load_breast_cancer

HERE = Path(__file__).parent


def write(folder: Path) -> Path:
    """Write ``cancer.csv`` into ``folder`` and return its path.

    Columns: ``patient`` (1 to 569, the key), thirty measurements of cell nuclei (``mean_radius`` and so on), and
    the target ``malignant``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cancer.csv"
    frame = load_breast_cancer(as_frame=True).frame.rename(columns=lambda name: name.replace(" ", "_"))
    frame["malignant"] = frame.pop("target") == 0
    frame.insert(0, "patient", range(1, len(frame) + 1))
    frame.to_csv(path, index=False)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write scikit-learn's breast cancer set as CSV.")
    parser.add_argument("--folder", type=Path, default=HERE / "data")
    print(write(parser.parse_args().folder))


if __name__ == "__main__":
    main()
