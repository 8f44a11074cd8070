"""What is wrong with a store: its own files, and the pixels of one frame. Reads only."""

from __future__ import annotations

import json

import xxhash

from landmark_batch.errors import StoreError, UnreadableError
from landmark_batch.object_client import ObjectStoreError

from .done import read_done
from .fence import read_fence
from .fingerprint import FrameSettings
from .ledger import LedgerIndex
from .records import FrameRecord, pixel_digest
from .saved_settings import settings_file
from .sealed import DamagedError, read_sealed
from .store import DECODE_ERRORS, FrameStore, unreadable


def check_metadata(store: FrameStore, index: LedgerIndex | None = None) -> list[str]:
    """Every damage outside of the pixels, one line each: descriptions, zarr.json files, coordinates, settings, fence, `done`, ledger.

    Empty for a healthy store. Reads all of these files (15 MB for 100,000 frames), and the ledger unless an index of it is given.
    """
    index = (index or LedgerIndex(store.layout.ledger)).refresh()
    problems = _descriptions(store) + _settings(store) + _done(store, index)
    try:
        read_fence(store.layout)
    except ObjectStoreError:
        raise
    except StoreError as error:
        problems.append(error.message)
    if store.layout.journal.exists():
        problems.append(f"{store.layout.journal}: a change of flight was cut short; the next render finishes it")
    return problems + [str(line) for line in index.damaged()]


def _descriptions(store: FrameStore) -> list[str]:
    definition, problems = store.definition, []
    for path in (store.layout.definition, store.layout.flight, store.layout.damaged):
        try:
            read_sealed(path)
        except (OSError, DamagedError) as error:
            if path != store.layout.damaged or path.exists():
                problems.append(f"{path}: damaged ({error})")
    for key, text in definition.metadata.items():
        try:
            same = (store.path / key).read_bytes() == text.encode()
        except OSError as error:
            problems.append(f"{store.path / key}: {error.strerror}")
            continue
        if not same:
            problems.append(f"{store.path / key}: damaged or changed by another program")
    for key, digest in definition.coordinates.items():
        try:
            same = xxhash.xxh3_64_hexdigest((store.path / key).read_bytes()) == digest
        except OSError as error:
            problems.append(f"{store.path / key}: {error.strerror}")
            continue
        if not same:
            problems.append(f"{store.path / key}: damaged")
    return problems


def _settings(store: FrameStore) -> list[str]:
    problems = []
    kept = {*store.layout.settings.glob("*.json"), settings_file(store.layout, store.definition.settings)}
    for path in sorted(kept, key=str):
        try:
            if FrameSettings(read_sealed(path)["settings"]).digest != path.stem:
                problems.append(f"{path}: not the settings of its name")
        except (OSError, DamagedError, LookupError) as error:
            problems.append(f"{path}: damaged ({error})")
    return problems


def _done(store: FrameStore, index: LedgerIndex) -> list[str]:
    file = store.path / "done" / "c.0"
    finished = index.finished()
    if not file.exists():
        return [f"{file}: missing: readers take every frame for unfinished"] if finished else []
    try:
        mask = read_done(store.layout, store.definition)
    except (*DECODE_ERRORS, json.JSONDecodeError) as error:
        return [f"{file}: damaged ({error})"]
    false = [int(frame) for frame in mask.nonzero()[0] if int(frame) not in finished]
    return [f"{file}: says done of {len(false)} frames that the ledger does not hold, the first is {false[0]}"] if false else []


def check_frame(store: FrameStore, record: FrameRecord, output: str) -> str | None:
    """What is wrong with one output of a recorded frame, None if it decodes to the pixels that were written. Raises UnreadableError where
    this user may not look at it.
    """
    file = store.chunk_file(output, record.frame)
    try:
        size = file.stat().st_size
    except PermissionError as error:
        raise unreadable(file, error) from error
    except OSError as error:
        return error.strerror or str(error)
    if size != record.sizes[output]:
        return f"is {size} bytes, {record.sizes[output]} were written"
    try:
        pixels = store.read(output, record.frame)
    except (ObjectStoreError, UnreadableError):
        raise
    except StoreError as error:
        return str(error.__cause__ or error.message)
    return None if pixel_digest(pixels) == record.digests[output] else "decodes to other pixels than were written"
