// fp32 to and from pairs of 16-bit floats in one register; the first element is the low half.
#pragma once
#include "cuda/ptx/platform.cuh"
#if SWA_EMULATED
#include "emulation/float16.hpp"
#endif

namespace swa::ptx {

// The 16-bit type of an instruction's operands.
#if SWA_EMULATED
using emu::Half;
#else
enum class Half { kBf16, kFp16 };
#endif

// Whether the card converts float8 by an instruction (sm_89).
#if SWA_EMULATED
constexpr bool kConvertsFloat8 = true;
#elif defined(__CUDA_ARCH__)
constexpr bool kConvertsFloat8 = __CUDA_ARCH__ >= 890;
#else
constexpr bool kConvertsFloat8 = false;
#endif

// Two float8_e4m3fn in bits 0-15 as fp16, the first one in the low half: exact; NaN is 0x7fff.
SWA_DEVICE uint32_t e4m3_to_fp16(uint32_t two_bytes) {
#if SWA_EMULATED
  return emu::e4m3_to_fp16(uint8_t(two_bytes)) |
         uint32_t(emu::e4m3_to_fp16(uint8_t(two_bytes >> 8))) << 16;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint32_t packed;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(packed) : "h"(uint16_t(two_bytes)));
  return packed;
#else
  return two_bytes;  // never called: kConvertsFloat8
#endif
}

// Rounds to nearest even.
template <Half kType>
SWA_DEVICE uint32_t pack_half(float low, float high) {
#if SWA_EMULATED
  if constexpr (kType == Half::kBf16)
    return emu::float_to_bf16(low) | uint32_t(emu::float_to_bf16(high)) << 16;
  else
    return emu::float_to_fp16(low) | uint32_t(emu::float_to_fp16(high)) << 16;
#else
  uint32_t packed;
  if constexpr (kType == Half::kBf16)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#endif
}

template <Half kType>
SWA_DEVICE float half_low(uint32_t packed) {
  if constexpr (kType == Half::kBf16) {
    return bit_cast<float>(packed << 16);
  } else {
#if SWA_EMULATED
    return emu::fp16_to_float(uint16_t(packed));
#else
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(uint16_t(packed)));
    return value;
#endif
  }
}

template <Half kType>
SWA_DEVICE float half_high(uint32_t packed) {
  if constexpr (kType == Half::kBf16)
    return bit_cast<float>(packed & 0xffff0000u);
  else
    return half_low<kType>(packed >> 16);
}

}  // namespace swa::ptx
