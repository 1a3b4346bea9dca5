"""What makes a package a model folder of MLflow: ``MLmodel`` and the environment beside it.

https://mlflow.org/docs/latest/ml/model/#storage-format
No times and no random ids, so equal models are equal bytes.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import yaml

from modelkeep.formats.manifest import ONNX, SKOPS
from modelkeep.formats.signature import Signature

LOADER = "modelkeep.formats.mlflow_loader"


def files(
    signature: Signature, *, runtime: str, requirements: Sequence[str], skops_types: Sequence[str]
) -> dict[str, bytes]:
    """``MLmodel``, ``conda.yaml``, ``python_env.yaml``, ``requirements.txt``.

    Args:
        signature: Of the model.
        runtime: ``onnx`` adds MLflow's own onnx flavour.
        requirements: Pinned requirement lines.
        skops_types: Types that loading ``model.skops`` builds and skops does not know.
    """
    python = platform.python_version()
    environment = {"conda": "conda.yaml", "virtualenv": "python_env.yaml"}
    flavors: dict[str, Any] = {
        "python_function": {"env": environment, "loader_module": LOADER, "python_version": python},
        "sklearn": {
            "pickled_model": SKOPS,
            "serialization_format": "skops",
            "skops_trusted_types": list(skops_types),
            "sklearn_version": metadata.version("scikit-learn"),
            "code": None,
        },
    }
    if runtime == "onnx":
        flavors["onnx"] = {
            "data": ONNX,
            "onnx_version": metadata.version("onnx"),
            "providers": ["CPUExecutionProvider"],
            "code": None,
        }
    model = {"flavors": flavors, "signature": signature.to_mlflow()}
    pip = [f"pip<={metadata.version('pip')}"] if _has_pip() else ["pip"]
    conda = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", *pip, {"pip": list(requirements)}],
    }
    env = {"python": python, "build_dependencies": pip, "dependencies": ["-r requirements.txt"]}
    return {
        "MLmodel": _yaml(model),
        "conda.yaml": _yaml(conda),
        "python_env.yaml": _yaml(env),
        "requirements.txt": "".join(f"{line}\n" for line in requirements).encode(),
    }


def _has_pip() -> bool:
    try:
        return bool(metadata.version("pip"))
    except metadata.PackageNotFoundError:
        return False


def _yaml(data: Any) -> bytes:
    text: str = yaml.safe_dump(data, sort_keys=True, allow_unicode=True, default_flow_style=False)
    return text.encode()
