// Programmatic dependent launch (sm_90): a kernel launched as dependent (launch.cuh) may start
// before the kernel ahead of it in the stream has ended. On earlier cards no kernel is launched so,
// and these do nothing.
#pragma once
#include "cuda/ptx/platform.cuh"
#if SWA_EMULATED
#include "emulation/grid_dependency.hpp"
#endif

namespace swa::ptx {

// The dependent kernel may start as soon as every CTA of this one has said so or ended.
SWA_DEVICE void launch_dependents() {
#if !SWA_EMULATED && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits for the kernel ahead to end and for what it wrote to be visible. By every thread that
// touches memory that it, or the host after it, may read or write.
SWA_DEVICE void wait_for_grid() {
#if SWA_EMULATED
  emu::wait_for_grid();
#elif __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace swa::ptx
