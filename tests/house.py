"""The house rules that no off-the-shelf tool checks: lengths, import cycles, deferred imports.

Run as ``python tests/house.py``; prints each fault and exits 1 if there is any.
"""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "src"
MAX_FILE = 400
MAX_FUNCTION = 60


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def top_level_imports(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in tree.body:
        if is_type_checking(node):
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def main() -> int:
    faults: list[str] = []
    graph: dict[str, set[str]] = {}
    trees = {path: ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
    known = {module_name(path) for path in trees}
    for path, tree in trees.items():
        lines = path.read_text().count("\n")
        where = path.relative_to(ROOT.parent)
        if lines > MAX_FILE:
            faults.append(f"{where}: {lines} lines, at most {MAX_FILE}")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION:
                    faults.append(f"{where}:{node.lineno} {node.name}: {length} lines, at most {MAX_FUNCTION}")
        name = module_name(path)
        graph[name] = {found for found in top_level_imports(tree) if found in known and found != name}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        faults.append("import cycle: " + " -> ".join(error.args[1]))
    for fault in faults:
        print(fault)
    print(f"{len(trees)} files, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
