// Which part of a ragged batch a CTA works on, found from cu_seqlens_q on the device: no plan, so a
// CUDA graph stays valid when lengths change.
#pragma once
#include "cuda/params.h"
#include "cuda/ptx/ld_st.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/shuffle.cuh"
#include "cuda/ptx/thread.cuh"

namespace swa::cuda {

// Consecutive query tokens of one sequence.
struct QueryRange {
  int seq;         // -1: the batch has no such range
  int first_row;   // of q, for token 0 of the sequence
  int q_len;       // of the sequence
  int first, end;  // tokens
};

// More than any batch of num_seqs sequences with total_q tokens has ranges.
inline int max_query_ranges(int total_q, int num_seqs, int tokens_per_range) {
  return total_q / tokens_per_range + num_seqs;
}

// Range number `index` when every sequence is cut into ranges of tokens_per_range (the last one of
// a sequence is shorter). All lanes of the warp call this together.
SWA_DEVICE QueryRange find_query_range(const AttentionParams& p, int index, int tokens_per_range) {
  const ptx::GlobalPointer<const int32_t> starts = p.cu_seqlens_q;
  const int lane = ptx::lane_id();
  for (int first_seq = 0; first_seq < p.num_seqs; first_seq += 32) {
    const int seq = ptx::min(first_seq + lane, p.num_seqs - 1);
    const int start = starts[seq];
    const int end = starts[seq + 1];
    const int q_len = first_seq + lane < p.num_seqs ? end - start : 0;
    const int ranges = (q_len + tokens_per_range - 1) / tokens_per_range;
    int up_to = ranges;  // and including this lane's sequence
    SWA_UNROLL
    for (int distance = 1; distance < 32; distance *= 2) {
      const int below = ptx::shfl(up_to, lane - distance);
      if (lane >= distance) up_to += below;
    }
    const uint32_t beyond = ptx::ballot(up_to > index);
    if (beyond) {
      int source = 0;
      while (!(beyond >> source & 1)) ++source;
      const int before = ptx::shfl(up_to - ranges, source);
      const int row = ptx::shfl(start, source);
      const int length = ptx::shfl(q_len, source);
      const int first = (index - before) * tokens_per_range;
      return {first_seq + source, row, length, first, ptx::min(first + tokens_per_range, length)};
    }
    index -= ptx::shfl(up_to, 31);
  }
  return {-1, 0, 0, 0, 0};
}

}  // namespace swa::cuda
