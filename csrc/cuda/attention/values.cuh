// O += P V for a slice: 16 rows, 16 keys.
//
// A lane holds, for every 8 columns j of the product, those of rows g and g + 8 at two places:
//   16-bit pools   columns 8 j + 2 t and + 1
//   float8 pools   ldmatrix.trans moves pairs of columns, so one of two j's gets the even and one
//                  the odd columns of 16: 16 (j / 2) + 4 t + j % 2 and 2 further
#pragma once
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/thread.cuh"
#include "cuda/tile/fp8.cuh"
#include "cuda/tile/traits.cuh"

namespace swa::cuda {

template <class Traits>
using Output = float[Traits::kValueDim / 8][4];

// The column of out[j][e] and out[j][2 + e].
template <class Traits>
SWA_DEVICE int output_column(int j, int e) {
  const int t = ptx::lane_id() % 4;
  if constexpr (Traits::kFloat8)
    return j / 2 * 16 + 4 * t + 2 * e + j % 2;
  else
    return 8 * j + 2 * t + e;
}

// B fragments of 32 columns (float8) or 16: b[j] for the j-th 8 columns of the product.
template <class Traits>
constexpr int kColumnsAtOnce = Traits::kFloat8 ? 32 : 16;

template <class Traits>
SWA_DEVICE void load_values(uint32_t (&b)[kColumnsAtOnce<Traits> / 8][2], uint32_t slice,
                            int part) {
  const int lane = ptx::lane_id();
  uint32_t raw[4];
  ptx::ldmatrix_x4_trans(raw,
                         slice + Traits::Slice::value_offset(lane & 15, 2 * part + (lane >> 4)));
  SWA_UNROLL
  for (int chunk = 0; chunk < 2; ++chunk) {
    SWA_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t x = raw[2 * chunk + i];
      if constexpr (Traits::kFloat8) {
        b[2 * chunk][i] = decode_e4m3_pair<Traits::kHalf>((x & 0xff) | (x >> 8 & 0xff00));
        b[2 * chunk + 1][i] = decode_e4m3_pair<Traits::kHalf>((x >> 8 & 0xff) | (x >> 16 & 0xff00));
      } else {
        b[chunk][i] = x;
      }
    }
  }
}

template <class Traits>
SWA_DEVICE void add_values(Output<Traits>& out, const uint32_t (&p)[4], uint32_t slice) {
  constexpr int kBlocks = kColumnsAtOnce<Traits> / 8;
  SWA_UNROLL
  for (int part = 0; part < Traits::kValueDim / kColumnsAtOnce<Traits>; ++part) {
    uint32_t b[kBlocks][2];
    load_values<Traits>(b, slice, part);
    SWA_UNROLL
    for (int j = 0; j < kBlocks; ++j)
      ptx::mma_m16n8k16<Traits::kHalf>(out[part * kBlocks + j], p, b[j][0], b[j][1]);
  }
}

}  // namespace swa::cuda
