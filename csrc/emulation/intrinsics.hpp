// The built-in variables of a thread: threadIdx, blockIdx, blockDim, gridDim.
#pragma once
#include "config.hpp"

namespace swa::emu {

Dim3 thread_idx();
Dim3 block_idx();
Dim3 block_dim();
Dim3 grid_dim();

}  // namespace swa::emu
