// Online softmax over rows held as mma accumulators, for the test kernels: two rows per lane, N
// columns.
#pragma once
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/shuffle.cuh"

namespace swa::test {

struct RowState {
  float row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {0.f, 0.f};
};

// scores: [N / 8][4] as consecutive accumulators. visible(r, column) decides the mask. Scores
// become probabilities; the output accumulators are rescaled.
template <int kColumns, int kOutputs, class Visible>
SWA_DEVICE void online_softmax(float* scores, float* output, RowState& state, float scale_log2,
                               Visible visible) {
  const int quad_lane = ptx::lane_id() & 3;
  SWA_UNROLL
  for (int r = 0; r < 2; ++r) {
    float row_max = state.row_max[r];
    SWA_UNROLL
    for (int i = 2 * r; i < kColumns / 2; i += 4) {
      SWA_UNROLL
      for (int e = 0; e < 2; ++e) {
        float& s = scores[i + e];
        s = visible(r, i / 4 * 8 + quad_lane * 2 + e) ? s * scale_log2 : -INFINITY;
        row_max = fmaxf(row_max, s);
      }
    }
    row_max = fmaxf(row_max, ptx::shfl_xor(row_max, 1));
    row_max = fmaxf(row_max, ptx::shfl_xor(row_max, 2));
    const float base = row_max == -INFINITY ? 0.f : row_max;
    const float correction = ptx::ex2(state.row_max[r] - base);
    state.row_max[r] = row_max;
    state.row_sum[r] *= correction;
    SWA_UNROLL
    for (int i = 2 * r; i < kOutputs / 2; i += 4) {
      output[i] *= correction;
      output[i + 1] *= correction;
    }
    SWA_UNROLL
    for (int i = 2 * r; i < kColumns / 2; i += 4) {
      SWA_UNROLL
      for (int e = 0; e < 2; ++e) {
        scores[i + e] = ptx::ex2(scores[i + e] - base);
        state.row_sum[r] += scores[i + e];
      }
    }
  }
}

// 1 / sum of row r over the quad that shares it; 0 for a row that saw nothing.
SWA_DEVICE float inverse_row_sum(const RowState& state, int r) {
  float sum = state.row_sum[r];
  sum += ptx::shfl_xor(sum, 1);
  sum += ptx::shfl_xor(sum, 2);
  return sum > 0.f ? 1.f / sum : 0.f;
}

}  // namespace swa::test
