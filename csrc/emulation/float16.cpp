#include "float16.hpp"

#include <cmath>
#include <cstring>

namespace swa::emu {
namespace {

uint32_t bits_of(float f) {
  uint32_t u;
  std::memcpy(&u, &f, sizeof u);
  return u;
}
float float_of(uint32_t u) {
  float f;
  std::memcpy(&f, &u, sizeof f);
  return f;
}

constexpr uint16_t kNan = 0x7fff;
constexpr uint32_t kFloatInfinity = 0x7f800000;
constexpr uint32_t kFp16Overflow = 0x477ff000;  // the smallest float that rounds to infinity: 65520
constexpr uint32_t kFp16SmallestNormal = 0x38800000;  // 2^-14

}  // namespace

uint16_t float_to_bf16(float value) {
  const uint32_t u = bits_of(value);
  if ((u & 0x7fffffff) > kFloatInfinity) return kNan;
  return uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

float fp16_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31,
                 mantissa = bits & 0x3ff;
  if (exponent == 0) return float_of(sign | bits_of(std::ldexp(float(mantissa), -24)));
  if (exponent == 31) return float_of(sign | kFloatInfinity | mantissa << 13);
  return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t float_to_fp16(float value) {
  uint32_t u = bits_of(value);
  const auto sign = uint16_t(u >> 16 & 0x8000);
  u &= 0x7fffffff;
  if (u > kFloatInfinity) return kNan;
  if (u >= kFp16Overflow) return sign | 0x7c00;
  if (u < kFp16SmallestNormal)
    return sign | uint16_t(std::lrint(std::ldexp(double(float_of(u)), 24)));
  u += 0xfff + (u >> 13 & 1);
  return sign | uint16_t((u - 0x38000000) >> 13);
}

uint16_t e4m3_to_fp16(uint8_t bits) {
  const auto sign = uint16_t((bits & 0x80) << 8);
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return kNan;
  const float size = exponent == 0 ? std::ldexp(float(mantissa), -9)
                                   : std::ldexp(float(8 + mantissa), exponent - 10);
  return sign | float_to_fp16(size);
}

}  // namespace swa::emu
