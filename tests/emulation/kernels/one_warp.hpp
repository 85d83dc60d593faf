// For kernels that run as one warp.
#pragma once
#include "cuda/ptx/launch.cuh"

namespace swa::test {

template <class... Params, class... Arguments>
void one_warp(size_t smem_bytes, void (*kernel)(Params...), Arguments... arguments) {
  ptx::launch({1, 32, smem_bytes}, kernel, arguments...);
}

}  // namespace swa::test
