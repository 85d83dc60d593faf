// float8_e4m3fn in plain arithmetic: sm_80 has no instructions for it.
#pragma once
#include <cmath>

#include "cuda/ptx/convert.cuh"

namespace swa::cuda {

// Exact. The exponent is 4 bits with bias 7: put in place of a float's, the value is 2^120 too
// small, subnormal ones included. All bits but the sign set is NaN.
SWA_DEVICE float decode_e4m3(uint32_t byte) {
  if ((byte & 0x7f) == 0x7f) return NAN;
  constexpr float kTwoTo120 = 1329227995784915872903807060280344576.f;
  return ptx::bit_cast<float>((byte & 0x80) << 24 | (byte & 0x7f) << 20) * kTwoTo120;
}

// Rounds to nearest even; what is beyond the finite range becomes +-448, NaN stays NaN.
SWA_DEVICE uint32_t encode_e4m3(float x) {
  constexpr uint32_t kInfinity = 0x7f800000, kLargest = 0x43e00000, kSmallestNormal = 0x3c800000;
  constexpr uint32_t kExponentBias = (127 - 7) << 3;  // of float, less that of e4m3
  const uint32_t bits = ptx::bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 24 & 0x80;
  uint32_t size = bits & 0x7fffffff;
  if (size > kInfinity) return sign | 0x7f;
  if (size > kLargest) size = kLargest;
  if (size < kSmallestNormal) {  // floats from 2^14 on end where e4m3's subnormals do, at 2^-9
    const float rounded = ptx::bit_cast<float>(size) + 16384.f;
    return sign | (ptx::bit_cast<uint32_t>(rounded) - ptx::bit_cast<uint32_t>(16384.f));
  }
  size += 0x7ffff + (size >> 20 & 1);
  return sign | ((size >> 20) - kExponentBias);
}

// The two values in bits 0-15 as 16-bit floats, the first one in the low half; exact in both types.
template <ptx::Half kHalf>
SWA_DEVICE uint32_t decode_e4m3_pair(uint32_t two_bytes) {
  if constexpr (ptx::kConvertsFloat8) {
    const uint32_t halves = ptx::e4m3_to_fp16(two_bytes);
    if constexpr (kHalf == ptx::Half::kFp16) return halves;
    return ptx::pack_half<kHalf>(ptx::half_low<ptx::Half::kFp16>(halves),
                                 ptx::half_high<ptx::Half::kFp16>(halves));
  }
  return ptx::pack_half<kHalf>(decode_e4m3(two_bytes & 0xff), decode_e4m3(two_bytes >> 8 & 0xff));
}

}  // namespace swa::cuda
