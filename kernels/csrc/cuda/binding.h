// What the torch side of the CUDA kernels shares: errors to exceptions, tensors to pointers.
#pragma once
#include <ATen/core/Tensor.h>
#include <cuda_runtime.h>

template <typename T>
T* data(const at::Tensor& t) {
    return t.numel() == 0 ? nullptr : static_cast<T*>(t.data_ptr());
}

inline void check(int code, const char* what) {
    TORCH_CHECK(code == 0, what, ": ", cudaGetErrorString(static_cast<cudaError_t>(code)));
}
