// Joins the splits of a decode: a warp per row and head weighs the partial results by their
// log-sum-exp, in the order of the splits, and adds the sink once. Splits that the row's sequence
// does not touch were never written and are not read. From Hopper on it is launched as dependent on
// the kernel of the splits: its CTAs are there when the last of those ends.
#pragma once
#include "cuda/attention/decode_split.cuh"
#include "cuda/attention/epilogue.cuh"
#include "cuda/ptx/grid_dependency.cuh"
#include "cuda/ptx/launch.cuh"

namespace swa::cuda::smxx_combine {

constexpr int kWarps = 4, kThreads = kWarps * 32;

template <ptx::Half kHalf>
__global__ void __launch_bounds__(kThreads) kernel(const __grid_constant__ AttentionParams p) {
  ptx::wait_for_grid();
  const int num_heads = p.num_kv_heads * p.group_size;
  const int64_t index = int64_t(ptx::block_idx().x) * kWarps + ptx::warp_id();
  if (index >= int64_t(p.num_seqs) * p.q_len * num_heads) return;
  const int head = int(index % num_heads);
  const int64_t row = index / num_heads;
  const int seq = int(row / p.q_len), token = int(row % p.q_len);
  const ptx::GlobalPointer<const int32_t> seqlens_k = p.seqlens_k;
  const int splits = splits_touched(visible_keys(p, seqlens_k[seq]));
  const ptx::GlobalPointer<const float> partial_lse = p.partial_lse + index * p.num_splits;

  float max = -INFINITY;
  for (int s = 0; s < splits; ++s) max = fmaxf(max, partial_lse[s]);
  const float base = max == -INFINITY ? 0.f : max;
  float sum = 0.f;
  for (int s = 0; s < splits; ++s) sum += ptx::ex2(partial_lse[s] - base);
  const RowResult result = finish_row(max, sum, p.sinks, head);

  char* out = p.out + seq * p.out_seq_stride + token * p.out_token_stride +
              int64_t(head) * p.out_head_stride;
  const bool aligned = aligned_8(p.out, p.out_seq_stride | p.out_token_stride | p.out_head_stride);
  const float* partial_out = p.partial_out + index * p.num_splits * p.v_head_dim;
  for (int column = ptx::lane_id() * 4; column < p.v_head_dim; column += 32 * 4) {
    float x[4] = {0.f, 0.f, 0.f, 0.f};
    for (int s = 0; s < splits; ++s) {
      const float lse = partial_lse[s];
      if (lse == -INFINITY) continue;  // 0 x whatever the split met for other rows
      const float weight = ptx::ex2(lse - base) * result.factor;
      // Not through the non-coherent cache: the kernel ahead wrote it while this one was there.
      const ptx::GlobalPointer<const ptx::U32x4> columns =
          reinterpret_cast<const ptx::U32x4*>(partial_out + int64_t(s) * p.v_head_dim + column);
      const ptx::U32x4 raw = columns[0];
      x[0] += ptx::bit_cast<float>(raw.x) * weight;
      x[1] += ptx::bit_cast<float>(raw.y) * weight;
      x[2] += ptx::bit_cast<float>(raw.z) * weight;
      x[3] += ptx::bit_cast<float>(raw.w) * weight;
    }
    store_half4(out + column * 2,
                {ptx::pack_half<kHalf>(x[0], x[1]), ptx::pack_half<kHalf>(x[2], x[3])}, aligned);
  }
  const ptx::GlobalPointer<float> lse = p.lse;
  if (ptx::lane_id() == 0) lse[index] = result.lse;
}

template <ptx::Half kHalf>
ptx::Error launch(const AttentionParams& p, const Device& device, ptx::Stream stream) {
  const int64_t rows = int64_t(p.num_seqs) * p.q_len * p.num_kv_heads * p.group_size;
  const unsigned blocks = unsigned((rows + kWarps - 1) / kWarps);
  const bool dependent = device.compute_capability >= 90;
  return ptx::launch({blocks, kThreads, 0, 1, stream, dependent}, kernel<kHalf>, p);
}

}  // namespace swa::cuda::smxx_combine
