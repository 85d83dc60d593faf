// 16 bytes from anywhere: tensors may have strides that are not multiples of 16.
#pragma once
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/ld_st.cuh"

namespace swa::cuda {

SWA_DEVICE bool aligned_16(const void* pointer, int64_t strides) {
  return ((reinterpret_cast<uintptr_t>(pointer) | uintptr_t(strides)) & 15) == 0;
}

SWA_DEVICE ptx::U32x4 load_bytes(const char* src) {
  const ptx::GlobalPointer<const uint8_t> bytes = reinterpret_cast<const uint8_t*>(src);
  uint32_t words[4];
  for (int w = 0; w < 4; ++w) {
    words[w] = 0;
    SWA_NO_UNROLL
    for (int b = 0; b < 4; ++b) words[w] |= uint32_t(bytes[4 * w + b]) << 8 * b;
  }
  return {words[0], words[1], words[2], words[3]};
}

SWA_DEVICE ptx::U32x4 load_chunk(const char* src, bool aligned) {
  return aligned ? ptx::ldg<ptx::U32x4>(src) : load_bytes(src);
}

// To shared memory, zeros if not valid; asynchronous if aligned, so cp_async_wait and a barrier
// come before the data.
SWA_DEVICE void copy_chunk(uint32_t dst, const char* src, bool valid, bool aligned) {
  if (aligned)
    ptx::cp_async<16>(dst, src, valid ? 16 : 0);
  else
    ptx::sts(dst, valid ? load_bytes(src) : ptx::U32x4{0, 0, 0, 0});
}

// cp_async_wait with a number known at launch: at most `pending`, up to 3, groups stay in flight.
SWA_DEVICE void wait_for_copies(int pending) {
  switch (pending) {
    case 0:
      return ptx::cp_async_wait<0>();
    case 1:
      return ptx::cp_async_wait<1>();
    case 2:
      return ptx::cp_async_wait<2>();
    default:
      return ptx::cp_async_wait<3>();
  }
}

}  // namespace swa::cuda
