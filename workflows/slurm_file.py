"""The file that says what jobs to ask SLURM for: `landmark-batch render job.toml --cluster slurm.toml`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from landmark_batch.errors import ConfigError

_TIME = re.compile(r"(\d+-)?\d+(:\d{2}){0,2}")
_MEMORY = re.compile(r"\d+[KMGT]?")


class SlurmFile(BaseModel):
    """What each node's job is asked for. Every key but `nodes` may be left out: the cluster's own defaults hold then.

    partition, account: as sbatch's -p and -A. time: '4:00:00'. nodes: jobs of one node each. gpus_per_node: one rank each;
    0 for CPU nodes, whose ranks are one a core. cores_per_task: of the job. memory: of a node, as sbatch's --mem ('64G').
    prologue: lines of shell before the workers start. extra: further sbatch directives. python: of the worker hosts, default
    this one. host: address of this host that the nodes reach, default the one it has on its way out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    nodes: int = Field(ge=1, le=4096)
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    gpus_per_node: int = Field(default=0, ge=0, le=64)
    cores_per_task: int | None = Field(default=None, ge=1, le=4096)
    memory: str | None = None
    prologue: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    python: str | None = None
    host: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise ValueError(f'time = {self.time!r}: write it as "4:00:00" or "2-00:00:00"')
        if self.memory is not None and not _MEMORY.fullmatch(self.memory):
            raise ValueError(f'memory = {self.memory!r}: write it as "64G" or "64000M"')
        for line in (*self.extra, self.partition or "", self.account or "", self.python or ""):
            if "\n" in line:
                raise ValueError(f"{line!r}: one line each")
        return self

    @property
    def device(self) -> str:
        """'cuda' or 'cpu': what the nodes render on."""
        return "cuda" if self.gpus_per_node else "cpu"

    def directives(self) -> list[str]:
        """Of sbatch, beside partition, account, time and memory."""
        found = ["-N 1"]
        if self.gpus_per_node:
            found.append(f"--gpus-per-node={self.gpus_per_node}")
        return [*found, *self.extra]


def read_slurm_file(path: Path) -> SlurmFile:
    """Raises ConfigError naming file and key: it is missing, no TOML, has an unknown key or a wrong value."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such cluster file", remedy="configs/slurm.toml is one to begin with") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}", remedy="mend the file; configs/slurm.toml is one to begin with") from None
    try:
        return SlurmFile.model_validate(values)
    except ValidationError as error:
        raise _refusal(path, error) from None


def _refusal(path: Path, error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{path}: unknown key {key!r}", remedy=f"keys are {', '.join(SlurmFile.model_fields)}")
    if first["type"] == "missing":
        return ConfigError(f"{path}: {key} is missing", remedy="docs/clusters.md says what each key takes")
    text = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"{path}: {key + ': ' if key else ''}{text}", remedy="docs/clusters.md says what each key takes")
