"""What the installed torch says of itself, read from its files: its import takes seconds."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class TorchBuild:
    """version: as torch.__version__ ('2.13.0+cpu'). commit: that it was built from. cuda, hip: releases that it was built with, None
    without. folder: of the package.
    """

    version: str
    commit: str
    cuda: str | None
    hip: str | None
    folder: Path


@cache
def torch_build() -> TorchBuild:
    """Of the torch that `import torch` gives. Raises ModuleNotFoundError where there is none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    folder = Path(spec.origin).parent
    said: dict[str, object] = {}
    for node in ast.parse((folder / "version.py").read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(value := getattr(node, "value", None), ast.Constant):
                said[target.id] = value.value

    def text(name: str) -> str | None:
        return str(said[name]) if said.get(name) is not None else None

    return TorchBuild(text("__version__") or "", text("git_version") or "", text("cuda"), text("hip"), folder)
