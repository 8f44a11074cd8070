// exp, log(1 + x), sine and cosine of sixteen lanes, to within 2 units of the last place. Polynomials are minimax fits.
#pragma once

namespace LANDMARK_VARIANT {

// NaN stays NaN; below -87.3 the smallest normal number, above 88.7 about 3e38.
static inline F exponential(F x) {
    x = min(set(88.72f), max(set(-87.33f), x));
    F n = to_float(nearest(x * set(1.44269504f)));
    F r = fnma(n, set(0.693147182f), x);
    r = fnma(n, set(-1.9046542e-9f), r);
    F p = fma(set(1.3950489e-3f), r, set(8.36889e-3f));
    p = fma(p, r, set(4.1666206e-2f));
    p = fma(p, r, set(0.16666518f));
    p = fma(p, r, set(0.5f));
    p = fma(p * r, r, r) + set(1.0f);
    // 2^n in two factors: n = 128 alone is no float
    I half = shift_right(nearest(n) + seti(256), 1) - seti(128);
    F low = as_float(shift_left(half + seti(127), 23));
    F high = as_float(shift_left(nearest(n) - half + seti(127), 23));
    return p * low * high;
}

// x >= 0
static inline F log_one_plus(F x) {
    F y = x + set(1.0f);
    F lost = x - (y - set(1.0f));  // what rounding of y dropped
    // y = 2^e * m with m in [sqrt(1/2), sqrt(2))
    I raw = as_int(y) + seti(0x3f800000 - 0x3f3504f3);
    F e = to_float(shift_right(raw, 23) - seti(127));
    F m = as_float((raw & seti(0x007fffff)) + seti(0x3f3504f3));
    F small = select(y < set(1.41421354f), set(1.0f), set(0.0f));  // then e = 0, and x itself has all the digits
    F f = select(y < set(1.41421354f), x, m - set(1.0f));
    F s = f / (f + set(2.0f));
    F z = s * s;
    F p = fma(set(0.29871848f), z, set(0.3997754f));
    p = fma(p, z, set(0.66666776f));
    F square = f * f * set(0.5f);
    F tail = s * fma(p, z, square);  // log(1 + f) = f - (f^2 / 2 - s (f^2 / 2 + z p))
    F rest = fma(e, set(-1.9046542e-9f), (set(1.0f) - small) * (lost / y));
    return fma(e, set(0.693147182f), f - (square - (tail + rest)));
}

constexpr float QUADRANT_LIMIT = 30000.0f;  // beyond it three words of pi / 2 no longer hold enough digits

static inline void sine_cosine(F x, F& sine, F& cosine) {
    I n = nearest(x * set(0.636619747f));
    F q = to_float(n);
    F r = fnma(q, set(1.57079637f), x);
    r = fnma(q, set(-4.37113883e-8f), r);
    r = fnma(q, set(-1.71512451e-15f), r);
    F z = r * r;
    F s = fma(set(-1.9517264e-4f), z, set(8.332178e-3f));
    s = fma(s, z, set(-0.16666655f));
    s = fma(s * z, r, r);
    F c = fma(set(2.4438414e-5f), z, set(-1.3887368e-3f));
    c = fma(c, z, set(4.1666646e-2f));
    c = fma(c * z, z, fma(set(-0.5f), z, set(1.0f)));
    M swap = (n & seti(1)) == seti(1);
    I sine_sign = shift_left(n & seti(2), 30), cosine_sign = shift_left((n + seti(1)) & seti(2), 30);
    sine = as_float(as_int(select(swap, c, s)) + sine_sign);  // adding the top bit flips the sign
    cosine = as_float(as_int(select(swap, s, c)) + cosine_sign);
    uint32_t far = bits(abs(x) > set(QUADRANT_LIMIT));
    if (__builtin_expect(far != 0, 0)) {
        float angle[LANES], sines[LANES], cosines[LANES];
        store(angle, x), store(sines, sine), store(cosines, cosine);
        for (; far; far &= far - 1) {
            int i = __builtin_ctz(far);
            sines[i] = __builtin_sinf(angle[i]), cosines[i] = __builtin_cosf(angle[i]);
        }
        sine = load(sines), cosine = load(cosines);
    }
}

}  // namespace LANDMARK_VARIANT
