// Page ids to addresses, the one decoder of the CUDA kernels.
#pragma once
#include "cuda/params.h"
#include "cuda/ptx/platform.cuh"

namespace swa::cuda {

// Slot `slot` of one head in page `page_id` (device pages first, host pages after them).
SWA_DEVICE char* slot_address(const PagePool& pool, int page_id, int slot, int head) {
  if (page_id < pool.num_device_pages)
    return pool.device + page_id * pool.device_page_stride + slot * pool.device_slot_stride +
           head * pool.device_head_stride;
  return pool.host + (page_id - pool.num_device_pages) * pool.host_page_stride +
         slot * pool.host_slot_stride + head * pool.host_head_stride;
}

}  // namespace swa::cuda
