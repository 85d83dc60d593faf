// Rows of elements between float32 and what pools and tensors hold.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

#include "cpu/params.h"

namespace swa::cpu::SWA_ISA {

inline uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}

inline float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

inline float from_bfloat16(uint16_t x) { return float_of(uint32_t(x) << 16); }

// Round to nearest even; NaN keeps its sign and becomes quiet.
inline uint16_t to_bfloat16(float x) {
  const uint32_t u = bits_of(x);
  const uint16_t rounded = uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
  const uint16_t nan = uint16_t((u >> 16) | 0x40);
  return x != x ? nan : rounded;
}

inline float from_float16(uint16_t x) {
#ifdef __F16C__
  return _cvtsh_ss(x);
#else
  const uint32_t sign = uint32_t(x & 0x8000) << 16, rest = x & 0x7fff;
  if (rest >= 0x7c00) return float_of(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  if (rest < 0x400) return float_of(sign | bits_of(float(rest) * 0x1p-24f));
  return float_of(sign | ((rest << 13) + ((127 - 15) << 23)));
#endif
}

inline uint16_t to_float16(float x) {
#ifdef __F16C__
  return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#else
  const uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000, size = u & 0x7fffffff;
  if (size > 0x7f800000) return uint16_t(sign | 0x7e00 | ((size >> 13) & 0x1ff));
  if (size >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds beyond the largest
  if (size < 0x38800000) {  // below the smallest normal: units of 2^-24
    return uint16_t(sign | uint32_t(std::nearbyint(float_of(size) * 0x1p24f)));
  }
  return uint16_t(sign | ((size + 0xfff + ((size >> 13) & 1) - ((127 - 15) << 23)) >> 13));
#endif
}

constexpr float kFloat8Max = 448.0f;  // float8_e4m3fn

inline const std::array<float, 256>& float8_values() {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> v{};
    for (int i = 0; i < 256; ++i) {
      const int exponent = (i >> 3) & 15, mantissa = i & 7;
      const float size = exponent ? std::ldexp(8.0f + float(mantissa), exponent - 10)
                                  : std::ldexp(float(mantissa), -9);
      const float value = (i & 127) == 127 ? NAN : size;
      v[size_t(i)] = i & 128 ? -value : value;
    }
    return v;
  }();
  return values;
}

// Round to nearest even, clamped to the finite range; NaN stays NaN.
inline uint8_t to_float8(float x) {
  const uint8_t sign = uint8_t((bits_of(x) >> 24) & 0x80);
  if (x != x) return uint8_t(sign | 0x7f);
  const float size = std::fmin(std::fabs(x), kFloat8Max);
  if (size < 0x1p-6f) return uint8_t(sign | uint8_t(std::nearbyint(size * 0x1p9f)));
  const uint32_t u = bits_of(size);
  return uint8_t(sign | (((u + 0x7ffff + ((u >> 20) & 1)) >> 20) - ((127 - 7) << 3)));
}

// `count` elements at `from` as float32, times `scale`.
inline void to_float32(DType dtype, const char* from, int64_t count, float scale, float* to) {
  const auto* half = reinterpret_cast<const uint16_t*>(from);
  const auto* byte = reinterpret_cast<const uint8_t*>(from);
  switch (dtype) {
    case DType::kFloat32:
      std::memcpy(to, from, size_t(count) * 4);
      break;
    case DType::kBFloat16:
      for (int64_t i = 0; i < count; ++i) to[i] = from_bfloat16(half[i]);
      break;
    case DType::kFloat16:
      for (int64_t i = 0; i < count; ++i) to[i] = from_float16(half[i]);
      break;
    case DType::kFloat8: {
      const float* values = float8_values().data();
      for (int64_t i = 0; i < count; ++i) to[i] = values[byte[i]] * scale;
      break;
    }
  }
}

// `count` float32 as `dtype`; float8 is divided by `scale` first.
inline void from_float32(DType dtype, const float* from, int64_t count, float scale, char* to) {
  auto* half = reinterpret_cast<uint16_t*>(to);
  auto* byte = reinterpret_cast<uint8_t*>(to);
  switch (dtype) {
    case DType::kFloat32:
      std::memcpy(to, from, size_t(count) * 4);
      break;
    case DType::kBFloat16:
      for (int64_t i = 0; i < count; ++i) half[i] = to_bfloat16(from[i]);
      break;
    case DType::kFloat16:
      for (int64_t i = 0; i < count; ++i) half[i] = to_float16(from[i]);
      break;
    case DType::kFloat8:
      for (int64_t i = 0; i < count; ++i) byte[i] = to_float8(from[i] / scale);
      break;
  }
}

}  // namespace swa::cpu::SWA_ISA
