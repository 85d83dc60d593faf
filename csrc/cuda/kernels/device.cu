// What the host asks CUDA beside launching.
#include <cuda_runtime_api.h>

#include "cuda/kernels/kernels.h"

namespace swa::cuda {

int query_device(int index, Device* device) {
  int error = 0;
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    if (!error) error = int(cudaDeviceGetAttribute(&value, attribute, index));
    return value;
  };
  device->num_sms = ask(cudaDevAttrMultiProcessorCount);
  device->max_smem_bytes = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  device->compute_capability = 10 * ask(cudaDevAttrComputeCapabilityMajor);
  device->compute_capability += ask(cudaDevAttrComputeCapabilityMinor);
  return error;
}

const char* error_text(int error) {
  return error == kNoRoom ? "the device has too little shared memory for this case"
                          : cudaGetErrorString(cudaError_t(error));
}

}  // namespace swa::cuda
