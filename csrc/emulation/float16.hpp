// bf16, fp16 and float8_e4m3fn as bits, converted as the hardware does: round to nearest even, NaN
// becomes the canonical 0x7fff.
#pragma once
#include <cstdint>
#include <cstring>

namespace swa::emu {

enum class Half { kBf16, kFp16 };

inline float bf16_to_float(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}
uint16_t float_to_bf16(float value);
float fp16_to_float(uint16_t bits);
uint16_t float_to_fp16(float value);
uint16_t e4m3_to_fp16(uint8_t bits);

inline float half_to_float(uint16_t bits, Half type) {
  return type == Half::kBf16 ? bf16_to_float(bits) : fp16_to_float(bits);
}

}  // namespace swa::emu
