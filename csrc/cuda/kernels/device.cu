// What the host asks CUDA beside launching.
#include <cuda_runtime_api.h>

#include "cuda/kernels/kernels.h"

namespace swa::cuda {

int query_device(int index, Device* device) {
  const int error =
      int(cudaDeviceGetAttribute(&device->num_sms, cudaDevAttrMultiProcessorCount, index));
  if (error) return error;
  return int(cudaDeviceGetAttribute(&device->max_smem_bytes,
                                    cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
}

const char* error_text(int error) {
  return error == kNoRoom ? "the device has too little shared memory for this case"
                          : cudaGetErrorString(cudaError_t(error));
}

}  // namespace swa::cuda
