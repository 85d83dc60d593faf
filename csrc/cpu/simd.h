// Vectors of the level being compiled, in GCC/Clang vector extensions: the compiler maps them to
// the instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace swa::cpu::SWA_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Float __attribute__((vector_size(4 * kLanes)));
typedef int32_t Int __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Word __attribute__((vector_size(4 * kLanes)));

template <class V>
inline V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
inline void store(void* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

inline Float broadcast(float x) { return Float{} + x; }

// e^x for x <= 0, about one ulp; 0 below the smallest normal number. No NaN comes in. V is a vector
// of float of any width.
template <class V>
inline V exp_negative(V x) {
  using Integers = decltype(x < x);
  const V lowest = V{} - 87.0f;
  const Integers vanishes = x < lowest;
  x = vanishes ? lowest : x;
  // x = n ln 2 + r with |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to the nearest integer.
  const V magic = V{} + 12582912.0f;
  const V n = (x * 1.44269504f + magic) - magic;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  V p = V{} + 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Integers exponent = (__builtin_convertvector(n, Integers) + 127) << 23;
  V power;
  std::memcpy(&power, &exponent, sizeof power);
  return vanishes ? V{} : p * power;
}

// tanh without overflow: by exp away from 0, by its series near 0, where 1 - e^-2x would cancel.
template <class V>
inline V tanh(V x) {
  const V size = x < 0.0f ? -x : x;
  const V e = exp_negative(-2.0f * size);
  const V far = (1.0f - e) / (1.0f + e);
  const V s = size * size;
  V p = V{} - 929569.0f / 638512875;
  p = p * s + 21844.0f / 6081075;
  p = p * s - 1382.0f / 155925;
  p = p * s + 62.0f / 2835;
  p = p * s - 17.0f / 315;
  p = p * s + 2.0f / 15;
  p = p * s - 1.0f / 3;
  const V near = size + size * s * p;
  const V result = size < 0.4f ? near : far;
  return x < 0.0f ? -result : result;
}

// The lanes of v with those a power of two away exchanged.
template <int kDistance, int... kIndex>
inline Float exchange(Float v, std::integer_sequence<int, kIndex...>) {
  return __builtin_shufflevector(v, v, (kIndex ^ kDistance)...);
}

// Combine all lanes as a tree, always the same one.
template <int kDistance, class Combine>
inline Float combine_lanes(Float v, Combine combine) {
  v = combine(v, exchange<kDistance>(v, std::make_integer_sequence<int, kLanes>{}));
  if constexpr (kDistance > 1) return combine_lanes<kDistance / 2>(v, combine);
  return v;
}

inline float sum(Float v) {
  return combine_lanes<kLanes / 2>(v, [](Float a, Float b) { return a + b; })[0];
}

inline float max(Float v) {
  return combine_lanes<kLanes / 2>(v, [](Float a, Float b) { return a > b ? a : b; })[0];
}

// Transpose kLanes x kLanes words by swapping blocks of 1, 2, 4 ... between rows that distance
// apart.
template <int kDistance, int... kIndex>
inline void swap_blocks(Word& a, Word& b, std::integer_sequence<int, kIndex...>) {
  const Word low = __builtin_shufflevector(
      a, b, ((kIndex & kDistance) ? kLanes + kIndex - kDistance : kIndex)...);
  const Word high = __builtin_shufflevector(
      a, b, ((kIndex & kDistance) ? kLanes + kIndex : kIndex + kDistance)...);
  a = low;
  b = high;
}

template <int kDistance>
inline void transpose_step(Word (&rows)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    if (!(i & kDistance)) {
      swap_blocks<kDistance>(rows[i], rows[i + kDistance],
                             std::make_integer_sequence<int, kLanes>{});
    }
  }
}

inline void transpose(Word (&rows)[kLanes]) {
  transpose_step<1>(rows);
  transpose_step<2>(rows);
#if defined(__AVX2__)
  transpose_step<4>(rows);
#endif
#if defined(__AVX512F__)
  transpose_step<8>(rows);
#endif
}

}  // namespace swa::cpu::SWA_ISA
