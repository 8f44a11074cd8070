"""Which files make a scene: LandMark's file names and how they belong together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from landmark_batch.errors import CheckpointError
from landmark_batch.frames.definition import is_store
from landmark_batch.scene.store_layout import is_store_folder

SUB_NAME = re.compile(r"(?P<stem>.+)-sub(?P<block>\d+)\.th")
MERGED = "-merged-stack"
COMPANIONS = ("-wo_plane", "-wo_state_dict")
_EDIT_NAME = re.compile(r".+-sub\d+_(add|remove)\.th")
_OPTIMISER_STEM = "_opt"  # LandMark writes <name>_opt-sub{b}.th beside its checkpoints

Kind = Literal["file", "subs", "sub"]


@dataclass(frozen=True)
class SceneFiles:
    """kind: 'file' (sequential or merged-stack), 'sub' (one block alone), 'subs' (one file a block).

    paths: the checkpoint files, in block order. stem: the name before -merged-stack, -sub{b} or .th, with its directory.
    block: index of a block alone. companion: the file that was named where its partner is read instead.
    """

    kind: Kind
    paths: tuple[Path, ...]
    stem: Path
    block: int | None = None
    companion: Path | None = None

    @property
    def directory(self) -> Path:
        return self.stem.parent


def find_scene_files(path: Path) -> SceneFiles:
    """The files behind what the user named: a .th file of any kind, a companion, or a directory.

    A companion (-wo_plane, -wo_state_dict) leads to the -merged-stack.th it was cut from. A directory must hold one scene: one
    file, or all -sub{b}.th of one training (a -merged-stack.th beside them is the same scene and is read instead).
    Raises CheckpointError naming the file or directory.
    """
    path = Path(path)
    try:
        if path.is_dir():
            if is_store_folder(path):
                raise CheckpointError(f"{path}: a block store, not a checkpoint", remedy="name the checkpoint that it was made from")
            return _find_in_directory(path)
        path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, no permission
        raise CheckpointError(f"{str(path)[:200]!r}: cannot read it: {error}"[:400], remedy="check the path and its permissions") from None
    companion = _companion_suffix(path)
    if companion is not None:
        partner = path.with_name(path.name.removesuffix(f"{companion}.th") + ".th")
        if not partner.is_file():
            raise CheckpointError(
                f"{path}: a companion of {partner.name}, which is not beside it; "
                + ("it holds no planes" if companion == COMPANIONS[0] else "it holds settings, no weights"),
                remedy=_companion_remedy(partner),
            )
        return SceneFiles("file", (partner,), _stem_of(partner), companion=path)
    match = SUB_NAME.fullmatch(path.name)
    if match:
        return SceneFiles("sub", (path,), path.with_name(match["stem"]), block=int(match["block"]))
    return SceneFiles("file", (path,), _stem_of(path))


def find_companion(path: Path) -> SceneFiles:
    """As `find_scene_files`, but a companion without its partner stands for itself (to be described, not rendered)."""
    try:
        return find_scene_files(path)
    except CheckpointError:
        if path.is_file() and _companion_suffix(path) is not None:
            return SceneFiles("file", (path,), _stem_of(path), companion=path)
        raise


def sub_path(stem: Path, block: int, edit: str | None = None) -> Path:
    """<stem>-sub{block}.th, or <stem>-sub{block}_{edit}.th."""
    return stem.with_name(f"{stem.name}-sub{block}{f'_{edit}' if edit else ''}.th")


def _companion_suffix(path: Path) -> str | None:
    return next((suffix for suffix in COMPANIONS if path.name.endswith(f"{suffix}.th")), None)


def _companion_remedy(partner: Path) -> str:
    stem = partner.with_name(partner.name.removesuffix(f"{MERGED}.th"))
    if any(stem.parent.glob(f"{_glob_escape(stem.name)}-sub*.th")):
        return f"put {partner.name} beside it, or name the directory of the -sub{{b}}.th files"
    return f"put {partner.name} beside it"


def _stem_of(path: Path) -> Path:
    name = path.name.removesuffix(".th")
    for suffix in COMPANIONS:
        name = name.removesuffix(suffix)
    return path.with_name(name.removesuffix(MERGED))


def _glob_escape(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _find_in_directory(directory: Path) -> SceneFiles:
    subs: dict[str, dict[int, Path]] = {}
    singles: list[Path] = []
    for file in sorted(directory.glob("*.th")):
        match = SUB_NAME.fullmatch(file.name)
        if _EDIT_NAME.fullmatch(file.name) or _companion_suffix(file) is not None or not file.is_file():
            continue
        if match and not match["stem"].endswith(_OPTIMISER_STEM):
            _add_block(subs.setdefault(match["stem"], {}), int(match["block"]), file)
        elif not match and not file.stem.endswith(_OPTIMISER_STEM):
            singles.append(file)
    merged = {file.name.removesuffix(f"{MERGED}.th") for file in singles if file.name.endswith(f"{MERGED}.th")}
    groups = {stem: blocks for stem, blocks in subs.items() if stem not in merged}
    if len(groups) == 1:  # a single file can be named by itself, a group only by its directory
        stem, blocks = next(iter(groups.items()))
        return SceneFiles("subs", _complete(directory, stem, blocks), directory / stem)
    if not groups and len(singles) == 1:
        return find_scene_files(singles[0])
    if not groups and not singles:
        if is_store(directory):
            raise CheckpointError(f"{directory}: a store of frames, not of a scene", remedy="name the scene that it was rendered from")
        raise CheckpointError(
            f"{directory}: no checkpoint (*.th) in this directory", remedy="name a .th file, or the directory that holds them"
        )
    names = [file.name for file in singles] + [f"{stem}-sub{{b}}.th" for stem in groups]
    raise CheckpointError(
        f"{directory}: several scenes in this directory: {', '.join(names)}",
        remedy="name one file, or a directory with the -sub{b}.th files of one training",
    )


def _add_block(blocks: dict[int, Path], block: int, file: Path) -> None:
    if block in blocks:
        raise CheckpointError(f"{file}: the same block as {blocks[block].name}", remedy="remove one of them")
    blocks[block] = file


def _complete(directory: Path, stem: str, blocks: dict[int, Path]) -> tuple[Path, ...]:
    missing = [number for number in range(max(blocks) + 1) if number not in blocks]
    if missing:
        raise CheckpointError(
            f"{directory}: blocks are missing: {shorten([f'{stem}-sub{number}.th' for number in missing])}",
            remedy="put them there, or name one -sub{b}.th to render its block alone",
        )
    return tuple(blocks[number] for number in sorted(blocks))


def shorten(items: Sequence[object], limit: int = 8) -> str:
    """'a, b, c and 12 more'."""
    shown = ", ".join(str(item) for item in items[:limit])
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown
