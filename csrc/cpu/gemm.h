// The one matrix product of the attention kernels: C[rows, N] (+)= A[rows, K] B[K, N], in
// registers.
//
// Every element of C is one chain of multiply-adds over k in order, whatever `rows` is: which rows
// are computed together never changes a bit of any of them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/simd.h"

namespace swa::cpu::SWA_ISA {

#if defined(__AVX512F__)
constexpr int kMaxRows = 8;
#else
constexpr int kMaxRows = 4;
#endif
constexpr int kWide = 2;  // vectors of C per row
constexpr int kColumns = kWide * kLanes;

// One step of the product for a kind of operand. Plain: one float32 of A and B per step.
struct PlainProduct {
  static constexpr int kDepth = 1;  // values of k in a 32-bit word
  static Float multiply_add(uint32_t a, Word b, Float c) {
    float x;
    std::memcpy(&x, &a, 4);
    Float y;
    std::memcpy(&y, &b, sizeof y);
    return x * y + c;
  }

  // A row of float32 as operand A.
  static void pack(const float* from, int64_t count, uint32_t* to) {
    std::memcpy(to, from, size_t(count) * 4);
  }
};

#ifdef __AVX512BF16__
// Two bfloat16 per word, accumulated in float32.
struct PairProduct {
  static constexpr int kDepth = 2;
  static Float multiply_add(uint32_t a, Word b, Float c) {
    const __m512i x = _mm512_set1_epi32(int(a));
    return Float(_mm512_dpbf16_ps(__m512(c), __m512bh(x), __m512bh(b)));
  }

  static void pack(const float* from, int64_t count, uint32_t* to) {
    for (int64_t i = 0; i < count; i += 2 * kLanes) {
      const __m512 low = __m512(load<Float>(from + i)),
                   high = __m512(load<Float>(from + i + kLanes));
      store(to + i / 2, Word(_mm512_cvtne2ps_pbh(high, low)));
    }
  }
};
#endif

// Operand A with rows `stride` words apart and every kStep-th word of them.
template <int kStep = 1>
struct Left {
  const uint32_t* words;
  int64_t stride;
  uint32_t operator()(int64_t i, int64_t k) const { return words[i * stride + k * kStep]; }
  Left from_row(int64_t i) const { return {words + i * stride, stride}; }
};

// Operand B with rows `stride` words apart.
struct Right {
  const uint32_t* words;
  int64_t stride;
  const uint32_t* operator()(int64_t k) const { return words + k * stride; }
  Right from_column(int64_t n) const { return {words + n, stride}; }
};

// Operands, which may be others than the two above: a(i, k) is a word of A [rows, steps], b(k)
// points to row k of B [steps, columns]. C: floats.
template <class Product, int kRows, class A, class B>
inline void multiply_block(A a, B b, float* c, int64_t c_stride, int64_t steps, bool accumulate) {
  Float sums[kRows][kWide];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kWide; ++j) {
      sums[i][j] = accumulate ? load<Float>(c + i * c_stride + j * kLanes) : Float{};
    }
  }
  for (int64_t k = 0; k < steps; ++k) {
    Word column[kWide];
    const uint32_t* const row = b(k);
    for (int j = 0; j < kWide; ++j) column[j] = load<Word>(row + j * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const uint32_t x = a(i, k);
      for (int j = 0; j < kWide; ++j) {
        sums[i][j] = Product::multiply_add(x, column[j], sums[i][j]);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kWide; ++j) store(c + i * c_stride + j * kLanes, sums[i][j]);
  }
}

// C[rows, columns] with columns a multiple of kColumns; kMaxRows rows at a time.
template <class Product, class A, class B>
inline void multiply(A a, B b, float* c, int64_t c_stride, int64_t rows, int64_t columns,
                     int64_t steps, bool accumulate) {
  for (int64_t n = 0; n < columns; n += kColumns) {
    const auto run = [&](auto block, int64_t at) {
      multiply_block<Product, block.value>(a.from_row(at), b.from_column(n), c + at * c_stride + n,
                                           c_stride, steps, accumulate);
    };
    int64_t at = 0;
    for (; rows - at >= kMaxRows; at += kMaxRows) run(std::integral_constant<int, kMaxRows>{}, at);
    if (kMaxRows > 4 && rows - at >= 4) run(std::integral_constant<int, 4>{}, at), at += 4;
    if (rows - at >= 2) run(std::integral_constant<int, 2>{}, at), at += 2;
    if (rows - at >= 1) run(std::integral_constant<int, 1>{}, at);
  }
}

}  // namespace swa::cpu::SWA_ISA
