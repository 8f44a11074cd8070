// All kernels for one instruction set. Nothing here may use the standard library's templates: the linker would merge their
// instances with those of another set.
#define LANDMARK_VARIANT portable
#include "png.h"
#include "variant.h"
