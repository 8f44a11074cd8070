// The table of kernels of the instruction set that variant_*.cpp includes this for.
#pragma once
#include "filter.h"
#include "pack.h"

#define LANDMARK_JOIN2(a, b) a##b
#define LANDMARK_JOIN(a, b) LANDMARK_JOIN2(a, b)
#define LANDMARK_TEXT2(a) #a
#define LANDMARK_TEXT(a) LANDMARK_TEXT2(a)

const landmark::PngKernels landmark::LANDMARK_JOIN(png_, LANDMARK_VARIANT) = {
    LANDMARK_TEXT(LANDMARK_VARIANT), LANDMARK_VARIANT::filter, LANDMARK_VARIANT::copy, LANDMARK_VARIANT::count, LANDMARK_VARIANT::pack,
};
