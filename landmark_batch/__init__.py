"""landmark-batch: renders whole flights over LandMark GridNeRF scenes, offline, in parallel, exactly, resumably."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"

_here = Path(__file__).parent
if not (_here / "kernels").is_dir():  # a checkout: kernels, workflows, configs and cli.py stand beside this folder
    __path__.append(str(_here.parent))
