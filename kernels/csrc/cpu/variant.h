// The table of kernels of the instruction set that variant_*.cpp includes this for.
#pragma once
#include "transcendental.h"
#include "gemm.h"
#include "field.h"
#include "features.h"
#include "composite.h"
#include "decode.h"
#include "march.h"
#include "rays.h"

#define LANDMARK_JOIN2(a, b) a##b
#define LANDMARK_JOIN(a, b) LANDMARK_JOIN2(a, b)
#define LANDMARK_TEXT2(a) #a
#define LANDMARK_TEXT(a) LANDMARK_TEXT2(a)

const landmark::Kernels landmark::LANDMARK_JOIN(kernels_, LANDMARK_VARIANT) = {
    LANDMARK_TEXT(LANDMARK_VARIANT),  LANDMARK_VARIANT::pixel_rays, LANDMARK_VARIANT::march_groups, LANDMARK_VARIANT::march,
    LANDMARK_VARIANT::field_scratch,  LANDMARK_VARIANT::density,    LANDMARK_VARIANT::appearance,   LANDMARK_VARIANT::composite,
    LANDMARK_VARIANT::weigh,          LANDMARK_VARIANT::decode_scratch, LANDMARK_VARIANT::decode,
};
