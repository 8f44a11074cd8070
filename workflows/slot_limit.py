"""SlotLimit: how many blocks ranks of a host may hold at once in a run, where a render group was out of GPU memory with more.

Ranks whose exchanges hang cannot take fewer slots in place: their group ends and is formed again, of fresh processes. The number lies in
the run's folder, as the name of a file, so that they find it whoever drives the job by then.
"""

from __future__ import annotations

import logging
import secrets
import socket

from landmark_batch.errors import LandmarkError
from landmark_batch.object_path import ObjectPath, StorePath

logger = logging.getLogger(__name__)


class SlotLimit:
    """Of this host, in a run's folder. host: its name, for tests.

    taken: slots that this rank began to take; all blocks of the scene where it holds them all, 0 of a scene that has none.
    """

    def __init__(self, folder: StorePath, host: str = "") -> None:
        self._folder = folder
        self._prefix = f"slots-{host or socket.gethostname()}-"
        self.taken = 0

    def most(self) -> int | None:
        """Slots that a rank may take, None where nobody was out of memory. Raises OSError where the folder cannot be read."""
        names = [path.name for path in self._folder.glob("slots-*")]
        found = [name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix)]
        return min((int(number) for number in found if number.isdecimal()), default=None)

    def halve(self, slots: int) -> str:
        """After so many were too many: half of them at most from now on, with one warning. Returns what it says; '' where one slot cannot
        be halved, or the folder cannot be written.
        """
        from landmark_batch.model.fetched import FEWER_SLOTS

        if slots < 2:
            return ""
        text = FEWER_SLOTS % (slots, slots // 2)
        try:
            self._write(f"{self._prefix}{slots // 2}", text)
        except FileExistsError:  # another rank of this host was out of memory, too
            logger.info("%s", text)
        except (OSError, LandmarkError) as error:
            logger.error("%s: cannot note that fewer slots are to be taken: %s", self._folder, error)
            return ""
        else:
            logger.warning("%s", text)
        return text

    def _write(self, name: str, text: str) -> None:
        path, text = self._folder / name, f"{secrets.token_hex(4)}: {text}"  # by which a rank knows what it wrote itself
        if isinstance(path, ObjectPath):
            path.put(text.encode(), over=None)
        else:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
