"""Where a version came from: every input by digest, so that it can be made again."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field


class Code(Struct, frozen=True, kw_only=True):
    """The code a version was made with.

    Attributes:
        commit: Git commit; empty outside a repository.
        dirty_diff: Digest of the blob holding the uncommitted changes; empty when there were none.
    """

    commit: str = ""
    dirty_diff: str = ""


class Lineage(Struct, frozen=True, kw_only=True):
    """Everything that went into a version.

    Attributes:
        snapshot: Digest of the snapshot it was trained on.
        declaration: Digest of the declaration's canonical form.
        declaration_text: The declaration itself, as YAML.
        code: Commit and uncommitted changes.
        environment: Digest of the blob holding the environment lock.
        params: The parameters as fitted, JSON types.
        seed: Of everything random.
        parent: The champion when it was made, if any.
        extra: Anything else that must be equal to make it again, JSON types.
    """

    snapshot: str
    declaration: str
    declaration_text: str = ""
    code: Code = Code()
    environment: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    parent: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
