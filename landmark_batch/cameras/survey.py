"""Survey flights: lawn-mower lines over the scene's box, with the overlap that photogrammetry asks for."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from landmark_batch.cameras.check import check_flight
from landmark_batch.cameras.flight import Flight, Float64
from landmark_batch.cameras.lenses import make_lens
from landmark_batch.cameras.poses import check_count, finite, heading_poses, made_flight, positive
from landmark_batch.cameras.view import Corners, box_in_view
from landmark_batch.errors import ConfigError

log = logging.getLogger(__name__)

GRAZING = math.radians(10.0)  # ground seen at a flatter angle is not counted as covered
SECONDS_A_FOOTPRINT = 4.0  # pace of a survey that is told neither speed nor overlap
FPS = 24.0

Turns = Literal["arc", "jump"]


@dataclass(frozen=True)
class Footprint:
    """What one frame covers of level ground, scene units. back, front: along the heading, from under the camera (back < front).

    width: across, at the near edge, which is the narrowest.
    """

    back: float
    front: float
    width: float

    @property
    def length(self) -> float:
        return self.front - self.back


def footprint(lens: Float64, width: int, height: int, altitude: float, pitch: float) -> Footprint:
    """Ground covered from `altitude` (scene units above it) by a centred lens [4] pitched by `pitch` (radians, −π/2 = down).

    Raises ConfigError where the whole view is flatter than 10 degrees.
    """
    half = math.atan2(height / 2, lens[1])
    near, far = -pitch + half, max(-pitch - half, GRAZING)
    if near <= GRAZING:
        raise ConfigError(
            f"pitch = {math.degrees(pitch):g}: the view hardly meets the ground", remedy="pitch the camera further down (-90 = down)"
        )
    across = altitude * math.cos(half) / math.sin(near) * width / lens[0]
    return Footprint(altitude / math.tan(near), altitude / math.tan(far), across)


def survey_flight(
    aabb: Corners,
    *,
    width: int = 1920,
    height: int = 1080,
    focal: float | None = None,
    fov: float | None = None,
    altitude: float | None = None,
    ground: float | None = None,
    pitch: float = -90.0,
    overlap: float | None = None,
    sidelap: float = 0.6,
    speed: float | None = None,
    fps: float | None = None,
    heading: float = 0.0,
    turns: Turns = "arc",
    margin: float = 0.0,
    near_far: tuple[float, float] | None = None,
) -> Flight:
    """Lawn-mower lines that cover the floor of the box, every frame looking along its line. Scene units, seconds, degrees.

    altitude: above `ground` (default the box's floor); default near (of `near_far`) and 1.2 box heights, or a third of the shorter side.
    Overlaps hold on the ground; give the height of roofs as `ground` to have them hold there.
    pitch: −90 looks straight down. heading: direction of the first line, 0 = +x, towards +y.
    overlap: share of a frame's length that the next one shows again. speed: units a second at `fps`. Only overlap: frames as far apart
    as it allows. Only speed: speed / fps apart. Neither: a footprint's length in 4 seconds. Both: an error if the speed breaks the overlap.
    sidelap: share of a line's width that the next line shows again.
    turns: 'arc' flies half circles between the lines, 'jump' goes on at the next line. Frames that see nothing of the box (a slanted
    camera turning outside it) are left out, with a warning. margin: widens the covered floor on every side.
    Raises ConfigError for values out of range, CameraError where no frame sees anything of the box.
    """
    low, high = np.asarray(aabb[0], dtype=np.float64), np.asarray(aabb[1], dtype=np.float64)
    finite(ground=ground, heading=heading, margin=margin)
    positive(altitude=altitude, speed=speed, fps=fps)
    for key, share in (("overlap", overlap), ("sidelap", sidelap)):
        if share is not None and not 0 <= share < 1:
            raise ConfigError(f"{key} = {share:g}: a share from 0 to below 1", remedy=f"{key} = 0.6 shows 60 % again")
    if not -90 <= pitch < 0:
        raise ConfigError(f"pitch = {pitch:g}: degrees from -90 (down) to below 0")
    lens = make_lens(width, height, focal, fov)
    floor = float(low[2]) if ground is None else ground
    if altitude is None:
        altitude = _default_altitude(low, high, floor, near_far)
    rate = fps if fps is not None else FPS
    cover = footprint(lens, width, height, altitude, math.radians(pitch))
    step = _step(cover, overlap, speed, rate)
    half = (high - low)[:2] / 2 + margin
    if (half <= 0).any():
        raise ConfigError(f"margin = {margin:g}: nothing of the box is left", remedy="a negative margin is smaller than half the box")
    turn = math.radians(heading)
    lines = _lines(half, turn, cover, sidelap, turns)
    check_count(sum(abs(line.end - line.start) + math.pi * cover.width for line in lines) / step)
    legs = [part for i, line in enumerate(lines) for part in _leg(lines, i, line, step, turns)]
    track = np.concatenate(legs)  # [F, 3]: along, across, direction relative to the heading
    check_count(len(track))
    c, s = math.cos(turn), math.sin(turn)
    middle = (low + high)[:2] / 2
    ground_track = middle + track[:, :2] @ np.array([[c, s], [-s, c]])
    position = np.column_stack([ground_track, np.full(len(track), floor + altitude)])
    c2w = heading_poses(position, track[:, 2] + turn, math.radians(pitch))
    apart = abs(lines[1].across - lines[0].across) if len(lines) > 1 else 0.0
    shared = 100 * (1 - step / cover.length)
    log.info("survey: %d lines %.4g apart, altitude %.4g, frames %.4g apart, overlap %.1f %%", len(lines), apart, altitude, step, shared)
    lenses = np.tile(lens, (len(c2w), 1))
    seen = box_in_view(c2w, lenses, width, height, aabb)
    flight = made_flight(c2w[seen], lenses[seen], width, height, rate, "survey")
    if not seen.all():  # a slanted camera turns outside the box, looking away from it
        note = f"survey: {int((~seen).sum())} frames at the ends of its lines see nothing of the box and are left out"
        flight = replace(flight, warnings=(note,))
    check_flight(flight, aabb)
    return flight


@dataclass(frozen=True)
class _Line:
    """One straight leg: at `across` from `start` to `end` along the heading (scene units from the box's middle), sense +1 or -1."""

    across: float
    start: float
    end: float
    sense: int


def _default_altitude(low: Float64, high: Float64, floor: float, near_far: tuple[float, float] | None) -> float:
    """Above `floor`: clear of the box's top, and of near."""
    tall = float(high[2] - low[2])
    above = near_far[0] + 1.2 * tall if near_far is not None else max(float((high - low)[:2].min()) / 3, 1.2 * tall)
    altitude = above - (floor - float(low[2]))
    if altitude <= 0:
        raise ConfigError(f"ground = {floor:g} lies above the default altitude", remedy="set altitude, in scene units above ground")
    return altitude


def _step(cover: Footprint, overlap: float | None, speed: float | None, fps: float) -> float:
    """Way from frame to frame."""
    if speed is None:
        return cover.length * (1 - overlap) if overlap is not None else min(1.0, 1 / (SECONDS_A_FOOTPRINT * fps)) * cover.length
    allowed = cover.length * (1 - (overlap or 0.0))
    if speed / fps > allowed * (1 + 1e-9):
        raise ConfigError(
            f"speed = {speed:g} at {fps:g} fps leaves an overlap of {1 - speed / fps / cover.length:.2f}, not {overlap or 0:g}",
            remedy=f"fly at {allowed * fps:.4g} or slower, or ask for less overlap",
        )
    return speed / fps


def _lines(half: Float64, turn: float, cover: Footprint, sidelap: float, turns: Turns) -> list[_Line]:
    """Evenly spaced lines over a rectangle of half sides [2], in coordinates turned with the lines; with arcs, neighbours' ends meet."""
    c, s = math.cos(turn), math.sin(turn)
    corners = np.array([[x * c + y * s, -x * s + y * c] for x, y in ((-half[0], -half[1]), (half[0], -half[1]), half, (-half[0], half[1]))])
    reach = float(corners[:, 1].max())
    spare = 2 * reach - cover.width
    count = 1 + (math.ceil(spare / (cover.width * (1 - sidelap)) - 1e-9) if spare > 0 else 0)
    check_count(count)
    places = np.linspace(-spare / 2, spare / 2, count) if count > 1 else np.zeros(1)
    lines = []
    for i, across in enumerate(places):
        first, last = _extent(corners, float(across) - cover.width / 2, float(across) + cover.width / 2)
        sense = 1 if i % 2 == 0 else -1
        begin, finish = (first, last) if sense == 1 else (-last, -first)
        start, end = begin - cover.back, finish - cover.front
        if end < start:  # one footprint covers the whole line
            start = end = (start + end) / 2
        lines.append(_Line(float(across), sense * start, sense * end, sense))
    if turns == "jump":
        return lines
    joined = []
    for i, line in enumerate(lines):
        start, end = line.start, line.end
        if i > 0:
            start = _farther(lines[i - 1].end, start, lines[i - 1].sense)
        if i + 1 < len(lines):
            end = _farther(end, lines[i + 1].start, line.sense)
        joined.append(_Line(line.across, start, end, line.sense))
    return joined


def _farther(a: float, b: float, sense: int) -> float:
    return max(a, b) if sense > 0 else min(a, b)


def _extent(corners: Float64, low: float, high: float) -> tuple[float, float]:
    """Least and greatest along-coordinate of the convex polygon `corners` [4, 2] where low ≤ across ≤ high."""
    found = [float(p[0]) for p in corners if low <= p[1] <= high]
    for p, q in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        cuts = [edge for edge in (low, high) if (p[1] - edge) * (q[1] - edge) < 0]
        found += [float(p[0] + (q[0] - p[0]) * (edge - p[1]) / (q[1] - p[1])) for edge in cuts]
    return min(found), max(found)


def _leg(lines: list[_Line], i: int, line: _Line, step: float, turns: Turns) -> list[Float64]:
    """Frames [n, 3] of a line, both ends included, then those of the arc to the next line, its ends left out."""
    facing = 0.0 if line.sense > 0 else math.pi
    length = abs(line.end - line.start)
    count = check_count(math.ceil(length / step - 1e-9) + 1)
    along = np.linspace(line.start, line.end, count)
    parts = [np.column_stack([along, np.full(count, line.across), np.full(count, facing)])]
    if turns == "arc" and i + 1 < len(lines):
        radius = (lines[i + 1].across - line.across) / 2
        pieces = check_count(math.ceil(math.pi * radius / step))
        angle = math.pi * np.arange(1, pieces) / pieces
        bow = line.end + line.sense * radius * np.sin(angle)
        across = line.across + radius * (1 - np.cos(angle))
        direction = angle if line.sense > 0 else math.pi - angle
        parts.append(np.column_stack([bow, across, direction]))
    return parts
