"""PoseSpline: a smooth camera path through given poses."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.spatial.transform import Rotation

from landmark_batch.cameras.flight import Float64
from landmark_batch.errors import CameraError

_WRAP = 16  # keys repeated on each side of a loop: the effect of a spline's end shrinks by 0.27 a key
_DENSE = 256  # points a leg for arc length


class PoseSpline:
    """Positions and unit quaternions on cubic splines with continuous second derivatives; quaternions normalised after.

    Quaternions are splined as four numbers, each key on the side nearer to the one before: the way of a turn of up to half a circle,
    with continuous angular acceleration. scipy's RotationSpline is an iteration that diverges for 1 % of random turns.
    c2w: [K, 3, 4] keys, K ≥ 2. times: [K] ascending; of a loop [K + 1], the last one being when the first key comes again.
    intrinsics: [K, 4], interpolated without overshoot. All keys are passed through.
    Raises CameraError: fewer than two keys (three for a loop), times that do not ascend, turns so wild that no rotation is between them.
    """

    def __init__(self, c2w: Float64, intrinsics: Float64, times: Float64, *, loop: bool = False) -> None:
        count = len(c2w)
        least = 3 if loop else 2
        if count < least:
            raise CameraError(
                f"{count} poses: a {'loop' if loop else 'path'} goes through at least {least}", remedy="name a file with more poses"
            )
        if len(times) != count + loop or not (np.diff(times) > 0).all():
            raise CameraError("the times of the poses do not ascend", remedy="use another timing (distance, even)")
        self.times = times
        if loop:
            index = np.arange(-_WRAP, count + _WRAP + 1)
            lap = times[-1] - times[0]
            times = times[index % count] + lap * (index // count)
            c2w, intrinsics = c2w[index % count], intrinsics[index % count]
        self._position = CubicSpline(times, c2w[:, :, 3], bc_type="natural")
        self._quaternion = CubicSpline(times, _same_side(Rotation.from_matrix(c2w[:, :, :3]).as_quat()), bc_type="natural")
        self._lens = PchipInterpolator(times, intrinsics)
        self._steady = np.where((intrinsics == intrinsics[0]).all(axis=0), intrinsics[0], np.nan)

    def __call__(self, t: Float64) -> tuple[Float64, Float64]:
        """([N, 3, 4] poses, [N, 4] intrinsics) at times t [N]; a lens that is the same in all keys keeps its bits."""
        quaternion = self._quaternion(t)
        if (np.linalg.norm(quaternion, axis=1) < 1e-6).any():
            raise CameraError(
                "the camera turns too wildly between its poses", remedy="add poses between those that look apart, or timing even"
            )
        c2w = np.concatenate([Rotation.from_quat(quaternion).as_matrix(), self._position(t)[:, :, None]], axis=2)
        return c2w, np.where(np.isnan(self._steady), self._lens(t), self._steady)

    def constant_speed(self, share: Float64) -> Float64:
        """Times at which the given shares [N] (0 to 1) of the way are flown; the shares of time where the path stands still."""
        start, end = float(self.times[0]), float(self.times[-1])
        legs = zip(self.times[:-1], self.times[1:], strict=True)
        t = np.concatenate([*(np.linspace(a, b, _DENSE, endpoint=False) for a, b in legs), [end]])
        speed = np.linalg.norm(self._position(t, 1), axis=1)
        middle = np.linalg.norm(self._position((t[1:] + t[:-1]) / 2, 1), axis=1)
        way = np.concatenate([[0.0], np.cumsum(np.diff(t) * (speed[1:] + 4 * middle + speed[:-1]) / 6)])
        if way[-1] <= 0:
            return start + share * (end - start)
        times: Float64 = np.interp(share * way[-1], way, t)
        return times


def _same_side(quaternion: Float64) -> Float64:
    """[K, 4] with signs such that neighbours have no negative product: q and −q are one rotation."""
    flips = np.where(np.einsum("kq,kq->k", quaternion[1:], quaternion[:-1]) < 0, -1.0, 1.0)
    signs: Float64 = np.concatenate([[1.0], np.cumprod(flips)])
    return quaternion * signs[:, None]
