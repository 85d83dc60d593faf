#include "intrinsics.hpp"

#include "machine.hpp"

namespace swa::emu {

Dim3 thread_idx() { return self().idx; }
Dim3 block_idx() { return self().block->idx; }
Dim3 block_dim() { return machine().launch->shape.block; }
Dim3 grid_dim() { return machine().launch->shape.grid; }

}  // namespace swa::emu
