"""Names for what nobody named, as MLflow gives them: two words and a number."""

from __future__ import annotations

import secrets

_FIRST = (
    "able bold brave bright calm clever deep eager fair fine glad grand keen kind light lively merry proud quiet"
)
_SECOND = "ant bear crane deer dove eel finch fox gull hare hawk lark lynx mole newt otter owl seal stork wren"


def fresh() -> str:
    """A random name such as ``keen-otter-417``."""
    words = secrets.choice(_FIRST.split()), secrets.choice(_SECOND.split())
    return f"{words[0]}-{words[1]}-{secrets.randbelow(1000)}"
