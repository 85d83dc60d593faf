// From sums to results: the sink, the division, the stores.
#pragma once
#include "cuda/attention/online_softmax.cuh"
#include "cuda/params.h"

namespace swa::cuda {

// A row's final factor and log-sum-exp (natural, without the sink), from its maximum and sum in
// base 2. A row that saw nothing: 0 and -inf.
struct RowResult {
  float factor, lse;
};

SWA_DEVICE RowResult finish_row(float row_max, float row_sum, const float* sinks, int head) {
  if (row_sum == 0.f) return {0.f, -INFINITY};
  constexpr float kLn2 = 0.6931471805599453f;
  float denominator = row_sum;
  if (sinks) {
    const ptx::GlobalPointer<const float> sink = sinks;
    denominator += ptx::ex2(sink[head] * kLog2e - row_max);
  }
  return {1.f / denominator, (row_max + ptx::lg2(row_sum)) * kLn2};
}

// Four neighbouring 16-bit elements.
SWA_DEVICE void store_half4(char* dst, ptx::U32x2 x, bool aligned) {
  if (aligned) {
    ptx::stg(dst, x);
    return;
  }
  const ptx::GlobalPointer<uint16_t> elements = reinterpret_cast<uint16_t*>(dst);
  elements[0] = uint16_t(x.x);
  elements[1] = uint16_t(x.x >> 16);
  elements[2] = uint16_t(x.y);
  elements[3] = uint16_t(x.y >> 16);
}

// Stores row r of the lane, times `factor`. The lanes of a row exchange elements so that each has
// four in a row, together whole sectors; all lanes of the warp take part.
template <class Traits>
SWA_DEVICE void store_row(char* row, const Output<Traits>& out, int r, float factor, bool exists,
                          bool aligned) {
  const int t = ptx::lane_id() % 4;
  SWA_UNROLL
  for (int j = 0; j < Traits::kValueDim / 8; j += 2) {
    const float* a = out[j] + 2 * r;
    const float* b = out[j + 1] + 2 * r;
    ptx::U32x2 x;
    int column;
    if constexpr (Traits::kFloat8) {  // even columns in a, odd ones in b
      x = {ptx::pack_half<Traits::kHalf>(a[0] * factor, b[0] * factor),
           ptx::pack_half<Traits::kHalf>(a[1] * factor, b[1] * factor)};
      column = 8 * j + 4 * t;
    } else {
      const uint32_t pair_a = ptx::pack_half<Traits::kHalf>(a[0] * factor, a[1] * factor);
      const uint32_t pair_b = ptx::pack_half<Traits::kHalf>(b[0] * factor, b[1] * factor);
      const uint32_t other = ptx::shfl_xor(t % 2 ? pair_a : pair_b, 1);
      x = t % 2 ? ptx::U32x2{other, pair_b} : ptx::U32x2{pair_a, other};
      column = 8 * (j + t % 2) + t / 2 * 4;
    }
    if (exists) store_half4(row + column * 2, x, aligned);
  }
}

SWA_DEVICE bool aligned_8(const void* pointer, int64_t strides) {
  return ((reinterpret_cast<uintptr_t>(pointer) | uintptr_t(strides)) & 7) == 0;
}

// What row r of the lane is to be multiplied with; stores its log-sum-exp. `first_lse` is token 0,
// head 0 of the tile's group, `first_head` is that head.
SWA_DEVICE float finish_row(const AttentionParams& p, const WarpRows& rows, int r, int first_head,
                            float* first_lse, const SoftmaxState& state) {
  const float row_sum = quad_sum(state.sum[r]);
  if (!rows.exists[r]) return 0.f;
  const RowResult result = finish_row(state.max[r], row_sum, p.sinks, first_head + rows.head[r]);
  const ptx::GlobalPointer<float> lse = first_lse;
  if (ptx::lane_id() % 4 == 0)
    lse[int64_t(rows.token[r]) * p.num_kv_heads * p.group_size + rows.head[r]] = result.lse;
  return result.factor;
}

// Stores row r of the lane, times `factor`; `first_out` is token 0, head 0 of the tile's group.
template <class Traits>
SWA_DEVICE void store_row(const AttentionParams& p, const WarpRows& rows, int r, char* first_out,
                          float factor, const Output<Traits>& out) {
  const bool aligned = aligned_8(
      p.out, p.out_token_stride | p.out_head_stride | (p.cu_seqlens_q ? 0 : p.out_seq_stride));
  store_row<Traits>(
      first_out + rows.token[r] * p.out_token_stride + rows.head[r] * p.out_head_stride, out, r,
      factor, rows.exists[r], aligned);
}

// Results of a warp's rows.
template <class Traits>
SWA_DEVICE void store_results(const AttentionParams& p, const WarpRows& rows, int first_head,
                              char* first_out, float* first_lse, const SoftmaxState& state,
                              const Output<Traits>& out) {
  SWA_UNROLL
  for (int r = 0; r < 2; ++r) {
    const float factor = finish_row(p, rows, r, first_head, first_lse, state);
    store_row<Traits>(p, rows, r, first_out, factor, out);
  }
}

}  // namespace swa::cuda
