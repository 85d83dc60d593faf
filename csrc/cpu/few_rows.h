// Up to 8 query rows against keys that are read where they lie. Lanes are rows, so an element of K
// is one multiply-add for all of them and K needs no transpose, which so few rows would not repay.
// A row's operations and their order are those of the general path.
#pragma once

#include "cpu/simd.h"

namespace swa::cpu::SWA_ISA {

constexpr int kFewRows = 8;
constexpr int kFewLanes = 2 * kFewRows;
// Products: lane 2 * row + d % 2. Scores and weights: lane kFewRows * (key % 2) + row.
typedef float FewFloat __attribute__((vector_size(4 * kFewLanes)));
typedef int32_t FewInt __attribute__((vector_size(4 * kFewLanes)));
typedef uint64_t FewPair __attribute__((vector_size(4 * kFewLanes)));

inline FewFloat swap_halves(FewFloat v) {
  return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
}

// One value for each row, for both keys of a vector.
inline FewFloat load_rows(const float* rows) {
  FewFloat v;
  std::memcpy(&v, rows, 4 * kFewRows);
  std::memcpy(reinterpret_cast<float*>(&v) + kFewRows, rows, 4 * kFewRows);
  return v;
}
inline void store_rows(float* rows, FewFloat v) { std::memcpy(rows, &v, 4 * kFewRows); }

// queries [dim / 2, kFewRows, 2]: row `row` from `from`.
inline void interleave_query(const float* from, int64_t dim, int row, float* queries) {
  for (int64_t d = 0; d < dim; d += 2) std::memcpy(queries + d * kFewRows + row * 2, from + d, 8);
}

// scores [kKeys, kFewRows] = K Q^T, each the sum of a chain over the even and one over the odd
// elements. What lies where `upcoming` points is fetched on the way, a line for every line read.
template <int kKeys>
inline void score_keys(const float* const* keys, const float* const* upcoming, const float* queries,
                       int64_t dim, float* scores) {
  constexpr int64_t kLine = 16;  // floats
  FewFloat sums[kKeys] = {};
  for (int64_t line = 0; line < dim; line += kLine) {
    for (int i = 0; i < kKeys; ++i) __builtin_prefetch(upcoming[i] + line);
    for (int64_t d = line; d < line + kLine && d < dim; d += 2) {
      const FewFloat q = load<FewFloat>(queries + d * kFewRows);
      for (int i = 0; i < kKeys; ++i) {
        const FewFloat k = FewFloat(FewPair{} + load<uint64_t>(keys[i] + d));
        sums[i] = q * k + sums[i];
      }
    }
  }
  for (int i = 0; i < kKeys; ++i) {
    float rows[kFewRows];
    for (int row = 0; row < kFewRows; ++row) rows[row] = sums[i][2 * row] + sums[i][2 * row + 1];
    std::memcpy(scores + i * kFewRows, rows, sizeof rows);
  }
}

inline void score_keys(const float* const* keys, const float* const* upcoming, int64_t count,
                       const float* queries, int64_t dim, float* scores) {
  constexpr int kKeys = kLanes == 16 ? 16 : kLanes / 2;  // as the registers allow
  int64_t i = 0;
  for (; i + kKeys <= count; i += kKeys)
    score_keys<kKeys>(keys + i, upcoming + i, queries, dim, scores + i * kFewRows);
  for (; i < count; ++i) score_keys<1>(keys + i, upcoming + i, queries, dim, scores + i * kFewRows);
}

// For each row the sum over kKeys keys, in the order in which sum() of lanes adds them.
template <int kKeys>
inline FewFloat sum_keys(const float* weights) {
  constexpr int kVectors = kLanes / 2;
  FewFloat sums[kVectors] = {};
  for (int j = 0; j < kKeys / 2; ++j) sums[j % kVectors] += load<FewFloat>(weights + j * kFewLanes);
  for (int distance = kVectors / 2; distance > 0; distance /= 2) {
    for (int i = 0; i < distance; ++i) sums[i] += sums[i + distance];
  }
  return sums[0] + swap_halves(sums[0]);
}

}  // namespace swa::cpu::SWA_ISA
