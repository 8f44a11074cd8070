"""Reading a torch file as data: nothing in it is ever executed, everything it asks for is on a short list.

LandMark's checkpoints are pickles that hold tensors, one numpy array (the packed alpha mask) and, once merged, objects of
LandMark's own config classes. All numpy and config names are mapped to inert stand-ins (`stored`): neither numpy nor
LandMark is called while a file is read, whatever numpy version wrote it. Every other name is refused.
"""

from __future__ import annotations

import io
import logging
import pickletools
import re
import threading
import warnings
import zipfile
from pathlib import Path
from typing import Any

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.stored import ALLOWED

logger = logging.getLogger(__name__)

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6: a pickled magic number comes first
_BENIGN = re.compile(  # what torch itself allows and LandMark's files ask for; used to word the refusal, never to allow anything
    r"collections\.(OrderedDict|Counter)|builtins\.(bytearray|complex|set)|_codecs\.encode|torch\.(\w*Storage|Size|device|Tensor|float\d+|int\d+|bfloat16|bool|uint8)"
    r"|torch\._utils\._rebuild_\w+|torch\.nn\.parameter\.Parameter|torch\._tensor\._rebuild_from_type_v2"
)
_LEGACY_PICKLES = 5  # magic number, protocol, machine, content, storage keys
_LOCK = threading.Lock()  # torch's list of safe globals and Python's warning filters belong to the process


def read_torch_file(path: Path) -> dict[Any, Any]:
    """The dict that torch.save wrote, tensors on the CPU, memory-mapped where the format allows it.

    Raises CheckpointError (missing, empty, truncated, foreign, or asking for anything but data) naming the file and what
    was refused. Works for the zip format and, without memory-mapping, for the one before torch 1.6.
    """
    head = _head(path)
    mapped = False
    if head.startswith(_ZIP_MAGIC):
        mapped = _check_zip(path)
    else:
        _check_legacy(path, head)
    content = _load(path, mapped)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, a LandMark checkpoint is a dict with kwargs and state_dict",
            remedy="name a .th file that LandMark wrote",
        )
    return content


def is_mapped(path: Path) -> bool:
    """Whether `read_torch_file` maps this file's tensors into memory in place of reading them. Raises CheckpointError."""
    return _head(path).startswith(_ZIP_MAGIC) and _check_zip(path)


def is_torch_archive(path: Path) -> bool:
    """Whether this is a zip archive of torch's; False for its format from before 1.6. Raises CheckpointError for any other file."""
    head = _head(path)
    if head.startswith(_ZIP_MAGIC):
        _check_zip(path)
        return True
    _check_legacy(path, head)
    return False


def _check_legacy(path: Path, head: bytes) -> None:
    if not head.startswith(_LEGACY_MAGIC):
        raise CheckpointError(
            f"{path}: not a checkpoint: it begins with {head[:8]!r}, torch files begin with {_ZIP_MAGIC!r}",
            remedy="name a .th file that LandMark wrote",
        )


def _head(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise CheckpointError(f"{path}: not a regular file", remedy="name a .th file that LandMark wrote")
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint", remedy="check the path") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a directory", remedy="name the .th file in it") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot read it: {error}", remedy="check the path and its permissions") from None
    if not head:
        raise CheckpointError(f"{path}: empty file (0 bytes)", remedy="copy the checkpoint again")
    return head


def _check_zip(path: Path) -> bool:
    """Whether the archive may be memory-mapped. Raises CheckpointError unless it is a complete torch archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError) as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path}: truncated or damaged: its end is missing ({size} bytes are here; {error})", remedy="copy the checkpoint again"
        ) from None
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(f"{path}: a TorchScript program, not a checkpoint", remedy="name a .th file that LandMark wrote")
    if not any(name.endswith("/data.pkl") for name in names):
        shown = ", ".join(names[:3]) or "nothing"
        raise CheckpointError(f"{path}: a zip archive, but not of torch (it holds {shown})", remedy="name a .th file that LandMark wrote")
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)


def _load(path: Path, mapped: bool) -> Any:
    import torch

    allowed: list[Any] = [(function, name) for name, function in ALLOWED.items()]
    try:
        with _LOCK, warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            except RuntimeError as error:
                if not mapped or "mmap" not in str(error):
                    raise
                logger.info("%s: cannot be memory-mapped (%s), reading it whole", path, error)
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        refused = _refused(path)
        if refused:
            raise CheckpointError(
                f"{path}: refused: it asks for {', '.join(refused)}; a checkpoint is data and nothing in it is executed",
                remedy="get the checkpoint from a source you trust; LandMark's own files ask for none of this",
            ) from None
        raise CheckpointError(f"{path}: truncated, damaged or foreign: {_first_line(error)}", remedy="copy the checkpoint again") from error


def _refused(path: Path) -> list[str]:
    """Names a file's pickle asks for that are not on the list, found by reading its opcodes."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(item for item in archive.namelist() if item.endswith("/data.pkl"))
                pickles = [archive.read(name)]
        else:
            with path.open("rb") as file:
                pickles = [file.read(1 << 20)]  # a legacy file: several pickles, the last of them before the raw storages
    except (OSError, zipfile.BadZipFile, StopIteration, ValueError, EOFError, NotImplementedError):
        return []
    names: dict[str, None] = {}
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pickletools warns of odd escapes in damaged text
        for data in pickles:
            stream = io.BytesIO(data)
            for _ in range(_LEGACY_PICKLES):
                names |= dict.fromkeys(_globals_of(stream))
    return [ascii(name)[1:-1][:120] for name in names if name not in ALLOWED and not _BENIGN.fullmatch(name)]


def _globals_of(stream: io.BytesIO) -> list[str]:
    found: list[str] = []
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in ("GLOBAL", "INST"):
                found.append(str(argument).replace(" ", ".").replace("__builtin__.", "builtins."))
            elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
                found.append(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    except (ValueError, IndexError, KeyError, OverflowError):
        pass  # a broken pickle: what was found until here counts
    return found


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
