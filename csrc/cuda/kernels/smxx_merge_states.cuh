// Two partial attentions into one: a warp per row and head. A partial that saw no key has weight 0
// and is not read.
#pragma once
#include <cmath>

#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/thread.cuh"
#include "cuda/tile/element.cuh"

namespace swa::cuda::smxx_merge_states {

constexpr int kWarps = 4, kThreads = kWarps * 32;

struct Weights {
  float a, b, lse;
  bool reads_a, reads_b;  // an empty partial is not read
};

// A partial that saw no key has lse -inf here and +inf in FlashAttention.
SWA_DEVICE float lse_of(const Partial& part, int64_t row, int head) {
  const ptx::GlobalPointer<const float> all = part.lse;
  const float lse = all[row * part.lse_row_stride + head * part.lse_head_stride];
  return lse == INFINITY ? -INFINITY : lse;
}

SWA_DEVICE Weights weights_of(float lse_a, float lse_b, const float* sinks, int head) {
  if (lse_a == -INFINITY && lse_b == -INFINITY) return {0.f, 0.f, -INFINITY, false, false};
  // fmaxf leaves NaN out, and with it next to -inf there would be nothing to subtract.
  const float larger = fmaxf(lse_a, lse_b), largest = larger == -INFINITY ? 0.f : larger;
  const float a = expf(lse_a - largest), b = expf(lse_b - largest);
  float denominator = a + b;
  if (sinks) {
    const ptx::GlobalPointer<const float> sink = sinks;
    denominator += expf(sink[head] - largest);
  }
  return {a / denominator, b / denominator, largest + logf(a + b), lse_a != -INFINITY,
          lse_b != -INFINITY};
}

// One head of a row, kCount elements at once.
template <DType kDType, int kCount>
SWA_DEVICE void merge_row(const MergeParams& p, int64_t row, int head, const Weights& weights) {
  using Row = Elements<kDType, kCount>;
  const char* row_a = p.a.out + row * p.a.out_row_stride + head * p.a.out_head_stride;
  const char* row_b = p.b.out + row * p.b.out_row_stride + head * p.b.out_head_stride;
  char* merged_row = p.out + (row * p.num_heads + head) * p.dim * kSizeOf<kDType>;
  for (int column = ptx::lane_id() * kCount; column < p.dim; column += 32 * kCount) {
    const int offset = column * kSizeOf<kDType>;
    typename Row::Bits a = {}, b = {}, merged = {};
    if (weights.reads_a) a = load_unit<Row::kBytes>(row_a + offset);
    if (weights.reads_b) b = load_unit<Row::kBytes>(row_b + offset);
    SWA_UNROLL
    for (int i = 0; i < kCount; ++i)
      Row::set(merged, i, Row::get(a, i) * weights.a + Row::get(b, i) * weights.b);
    store_unit<Row::kBytes>(merged_row + offset, merged);
  }
}

template <DType kDType>
__global__ void __launch_bounds__(kThreads)
    kernel(const __grid_constant__ MergeParams p, const bool wide) {
  const int64_t index = int64_t(ptx::block_idx().x) * kWarps + ptx::warp_id();
  if (index >= p.rows * p.num_heads) return;
  const int64_t row = index / p.num_heads;
  const int head = int(index % p.num_heads);
  const Weights weights = weights_of(lse_of(p.a, row, head), lse_of(p.b, row, head), p.sinks, head);
  if (wide)
    merge_row<kDType, kElementsAtOnce<kDType>>(p, row, head, weights);
  else
    merge_row<kDType, 1>(p, row, head, weights);
  const ptx::GlobalPointer<float> lse = p.lse;
  if (ptx::lane_id() == 0) lse[index] = weights.lse;
}

template <DType kDType>
ptx::Error launch(const MergeParams& p, bool wide, ptx::Stream stream) {
  const unsigned blocks = unsigned((p.rows * p.num_heads + kWarps - 1) / kWarps);
  return ptx::launch({blocks, kThreads, 0, 1, stream}, kernel<kDType>, p, wide);
}

}  // namespace swa::cuda::smxx_merge_states
