// Who am I: the built-in variables of a thread.
#pragma once
#include "cuda/ptx/platform.cuh"
#if SWA_EMULATED
#include "emulation/intrinsics.hpp"
#endif

namespace swa::ptx {

#if SWA_EMULATED
using emu::block_dim;
using emu::block_idx;
using emu::grid_dim;
using emu::thread_idx;
#else
SWA_DEVICE uint3 thread_idx() { return threadIdx; }
SWA_DEVICE uint3 block_idx() { return blockIdx; }
SWA_DEVICE dim3 block_dim() { return blockDim; }
SWA_DEVICE dim3 grid_dim() { return gridDim; }
#endif

// For blocks that are one-dimensional.
SWA_DEVICE int lane_id() { return int(thread_idx().x % 32); }
SWA_DEVICE int warp_id() { return int(thread_idx().x / 32); }

}  // namespace swa::ptx
