// bf16 and fp16 as bits, converted as the hardware does: round to nearest even, NaN becomes the
// canonical 0x7fff.
#pragma once
#include <cstdint>

namespace swa::emu {

enum class Half { kBf16, kFp16 };

float bf16_to_float(uint16_t bits);
uint16_t float_to_bf16(float value);
float fp16_to_float(uint16_t bits);
uint16_t float_to_fp16(float value);

inline float half_to_float(uint16_t bits, Half type) {
  return type == Half::kBf16 ? bf16_to_float(bits) : fp16_to_float(bits);
}

}  // namespace swa::emu
