"""The records of a torch file, each with the CRC-32 that its writer left in the archive: torch itself never looks at them."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from isal import isal_zlib

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.unpickle import is_torch_archive

_PIECE = 4 << 20  # bytes read at a time
_LOCAL = struct.Struct("<4s22xHH")  # a record's own header: its mark, and the lengths of name and extra field that follow
_MARK = b"PK\x03\x04"


@dataclass(frozen=True)
class ArchiveRecord:
    """One file of the archive `path`. header: where its own begins. size: of its content as stored. crc: of its content, unpacked."""

    path: Path
    name: str
    header: int
    size: int
    crc: int
    packed: bool

    def damage(self) -> str | None:
        """What is wrong with its bytes, None where they are those that were written. Reads all of them."""
        try:
            found = self._unpacked() if self.packed else self._stored()
        except (OSError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
            return f"cannot be read: {error}"
        return None if found == self.crc else f"its CRC-32 is {found:08x}, {self.crc:08x} was written"

    def check(self) -> None:
        """Raise CheckpointError naming file and record where `damage` finds some."""
        wrong = self.damage()
        if wrong is not None:
            raise CheckpointError(f"{self.path}: record {self.name} is damaged: {wrong}", remedy="copy the checkpoint again")

    def _stored(self) -> int:
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.header)
            mark, name, extra = _LOCAL.unpack(file.read(_LOCAL.size).ljust(_LOCAL.size, b"\0"))
            if mark != _MARK:
                raise ValueError(f"no record begins at byte {self.header}")
            file.seek(name + extra, os.SEEK_CUR)
            piece = memoryview(bytearray(max(1, min(_PIECE, self.size))))
            left, found = self.size, 0
            while left:
                count = file.readinto(piece[: min(left, len(piece))])
                if not count:
                    raise ValueError(f"its last {left} bytes are missing")
                found = isal_zlib.crc32(piece[:count], found)
                left -= count
        return found

    def _unpacked(self) -> int:
        found = 0
        with zipfile.ZipFile(self.path) as archive, archive.open(self.name) as file:
            while piece := file.read(_PIECE):  # zipfile compares the sum at the end
                found = isal_zlib.crc32(piece, found)
        return found


def archive_records(path: Path) -> tuple[ArchiveRecord, ...]:
    """The records of a torch file, as its directory names them; none where it holds no checksums.

    That is a file in torch's format from before 1.6, and one that was written with checksums switched off (all of them are 0 then).
    Raises CheckpointError for a file that is missing, cut short or none of torch's.
    """
    if not is_torch_archive(path):
        return ()
    with zipfile.ZipFile(path) as archive:
        found = [item for item in archive.infolist() if not item.is_dir()]
    if not any(item.CRC for item in found if item.file_size):
        return ()
    return tuple(
        ArchiveRecord(path, item.filename, item.header_offset, item.compress_size, item.CRC, item.compress_type != zipfile.ZIP_STORED)
        for item in found
    )
