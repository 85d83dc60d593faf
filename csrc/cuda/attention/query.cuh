// Queries as the A operand of mma, straight from global memory.
//
// The sum over head_dim may be taken in any order, so it is taken in one that lets a lane use 16
// neighbouring bytes of a row: lane (g, t) of unit u holds the 8 elements from Slice::element_of
// on, which make k-steps 2 u and 2 u + 1 together. multiply_unit reads K in the same order.
#pragma once
#include "cuda/attention/chunk.cuh"
#include "cuda/attention/rows.cuh"
#include "cuda/params.h"

namespace swa::cuda {

template <class Traits>
class Query {
 public:
  // The fragments of a unit: [k-step][register].
  using Unit = uint32_t[2][4];

  // With less than 256 elements a row's fragments stay in registers; else there is no room beside
  // the output, and units are read again for every tile, from L1.
  static constexpr bool kInRegisters = Traits::kHeadDim < 256;

  // The rows' queries; `first` is token 0, head 0 of the tile's group, which stands in for absent
  // rows.
  SWA_DEVICE void load(const AttentionParams& p, const char* first, const WarpRows& rows) {
    aligned_ =
        aligned_16(p.q, p.q_token_stride | p.q_head_stride | (p.cu_seqlens_q ? 0 : p.q_seq_stride));
    for (int r = 0; r < 2; ++r)
      rows_[r] =
          first +
          (rows.exists[r] ? rows.token[r] * p.q_token_stride + rows.head[r] * p.q_head_stride : 0);
    if constexpr (kInRegisters) {
      SWA_UNROLL
      for (int u = 0; u < Traits::kHeadDim / 32; ++u) read(units_[u], u);
    }
  }

  SWA_DEVICE void unit(Unit& a, int u) const {
    if constexpr (kInRegisters)
      memcpy(a, units_[u], sizeof a);
    else
      read(a, u);
  }

 private:
  SWA_DEVICE void read(Unit& a, int u) const {
    const int offset = Traits::Slice::element_of(u, ptx::lane_id() % 4) * 2;
    SWA_UNROLL
    for (int r = 0; r < 2; ++r) {
      const ptx::U32x4 x = load_chunk(rows_[r] + offset, aligned_);
      a[0][r] = x.x;
      a[0][2 + r] = x.y;
      a[1][r] = x.z;
      a[1][2 + r] = x.w;
    }
  }

  const char* rows_[2];
  bool aligned_;
  Unit units_[kInRegisters ? Traits::kHeadDim / 32 : 1];
};

}  // namespace swa::cuda
