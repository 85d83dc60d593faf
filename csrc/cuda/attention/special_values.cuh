// Infinities and NaN in V.
//
// A row must not be touched by a value it does not see, but 0 x NaN is NaN: one special value
// spoils all rows of its tile. Looking for them beforehand would cost every product; results tell
// afterwards whether there was one. So a kernel works as if there were none, and if a result is not
// finite does its work once more, carefully: special values become 0 as their slices arrive, which
// changes no bit of the rows that do not see them, and are then added to the rows that do.
#pragma once
#include "cuda/attention/kv_loader.cuh"
#include "cuda/attention/rows.cuh"
#include "cuda/attention/values.cuh"
#include "cuda/ptx/shuffle.cuh"
#include "cuda/ptx/sync.cuh"

namespace swa::cuda {

// Whether no infinity and no NaN is in the outputs of the warp's rows.
template <class Traits>
SWA_DEVICE bool all_finite(const Output<Traits>& out, const WarpRows& rows) {
  float zero[2] = {0.f, 0.f};  // x * 0 is NaN for the others
  SWA_UNROLL
  for (int j = 0; j < Traits::kValueDim / 8; ++j)
    for (int i = 0; i < 4; ++i) zero[i / 2] += out[j][i] * 0.f;
  const bool finite = (zero[0] == 0.f || !rows.exists[0]) && (zero[1] == 0.f || !rows.exists[1]);
  return ptx::all(finite);
}

// Adds the special values among the loader's keys to the rows that see them.
template <class Traits>
SWA_DEVICE void add_special_values(Output<Traits>& out, const KvLoader<Traits>& loader,
                                   const WarpRows& rows) {
  const int begin = ptx::max(loader.first_key(), rows.first - rows.window + 1);
  const int end = ptx::min(loader.end_key(), rows.last + 1);
  for (int key = begin; key < end; ++key) {
    const char* row = loader.value_row(key);
    const bool sees[2] = {rows.sees(0, key), rows.sees(1, key)};
    SWA_UNROLL
    for (int j = 0; j < Traits::kValueDim / 8; ++j) {
      SWA_UNROLL
      for (int e = 0; e < 2; ++e) {
        const float value = loader.element(row, output_column<Traits>(j, e));
        const bool special = !(fabsf(value) < INFINITY);
        for (int r = 0; r < 2; ++r)
          if (special && sees[r]) out[j][2 * r + e] += value;
      }
      ptx::sync_warp();  // keeps the compiler from reading the whole row ahead, for want of
                         // registers
    }
  }
}

// The same for four columns of one row, at `position` in its sequence.
template <class Traits>
SWA_DEVICE void add_special_values(float (&x)[4], const KvLoader<Traits>& loader, int column,
                                   int position, int window) {
  const int begin = ptx::max(loader.first_key(), position - window + 1);
  const int end = ptx::min(loader.end_key(), position + 1);
  for (int key = begin; key < end; ++key) {
    const char* row = loader.value_row(key);
    for (int i = 0; i < 4; ++i) {
      const float value = loader.element(row, column + i);
      if (!(fabsf(value) < INFINITY)) x[i] += value;
    }
  }
}

}  // namespace swa::cuda
