// Launching a kernel: the host code is the same for a card and for the emulator.
#pragma once
#include "cuda/ptx/platform.cuh"
#if SWA_EMULATED
#include "emulation/launch.hpp"
#else
#include <cuda_runtime.h>
#endif

namespace swa::ptx {

#if SWA_EMULATED
using Dim3 = emu::Dim3;
using Stream = void*;
using Error = int;
#else
using Dim3 = dim3;
using Stream = cudaStream_t;
using Error = cudaError_t;
#endif

struct LaunchConfig {
  Dim3 grid, block;
  size_t smem_bytes = 0;
  unsigned cluster = 1;  // CTAs per cluster, along x
  Stream stream = nullptr;
  // May start before the kernel ahead of it in the stream has ended (grid_dependency.cuh); sm_90.
  bool dependent = false;
};

// Returns what CUDA says about the launch, 0 (cudaSuccess) if it went well. In emulation the kernel
// has run when this returns, and what it did wrong is in the session's reports.
template <class... Params, class... Arguments>
Error launch(const LaunchConfig& config, void (*kernel)(Params...), Arguments... arguments) {
#if SWA_EMULATED
  emu::launch({config.grid, config.block, config.smem_bytes, config.cluster, config.dependent},
              [kernel, arguments...] { kernel(arguments...); });
  return 0;
#else
  constexpr size_t kDefaultSmemBytes = 48 << 10;
  if (config.smem_bytes > kDefaultSmemBytes) {
    const Error error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             int(config.smem_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attributes[2] = {};
  unsigned num_attributes = 0;
  if (config.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[num_attributes++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = config.cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  if (config.dependent) {
    cudaLaunchAttribute& attribute = attributes[num_attributes++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t launch_config = {};
  launch_config.gridDim = config.grid;
  launch_config.blockDim = config.block;
  launch_config.dynamicSmemBytes = config.smem_bytes;
  launch_config.stream = config.stream;
  launch_config.attrs = attributes;
  launch_config.numAttrs = num_attributes;
  return cudaLaunchKernelEx(&launch_config, kernel, Params(arguments)...);
#endif
}

}  // namespace swa::ptx
