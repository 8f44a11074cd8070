// Rays of pixels, with the bits of LandMark's matrix product: (x r0 rounded + y r1) rounded once, then - r2.
#pragma once

namespace LANDMARK_VARIANT {

static void pixel_rays(const landmark::Pixels& p, float* rays) {
    for (int64_t i = 0; i < p.count; i++, rays += 6) {
        const int64_t row = p.index[i] / p.width, column = p.index[i] - row * p.width;
        const float x = ((float)column - p.lens[2] + p.center) / p.lens[0], y = -((float)row - p.lens[3] + p.center) / p.lens[1];
        for (int a = 0; a < 3; a++) {
            const float* turn = p.pose + 4 * a;
            rays[a] = turn[3];
            rays[3 + a] = (float)((double)(x * turn[0]) + (double)y * (double)turn[1]) - turn[2];
        }
    }
}

}  // namespace LANDMARK_VARIANT
