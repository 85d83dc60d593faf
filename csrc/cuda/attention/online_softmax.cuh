// Attention of a warp's 16 rows over a tile of keys in shared memory, with the running maximum and
// sum that join the tiles.
//
// A row's bits depend on the tile's place (a multiple of its size) and on what the row sees in it:
// a slice that some rows of the warp do not see adds exact zeros to them.
#pragma once
#include "cuda/attention/scores.cuh"
#include "cuda/attention/values.cuh"
#include "cuda/ptx/shuffle.cuh"

namespace swa::cuda {

// Of the lane's two rows; the sum is the lane's own share, to be added up over the row's 4 lanes.
struct SoftmaxState {
  float max[2] = {-INFINITY, -INFINITY};  // base 2
  float sum[2] = {0.f, 0.f};
};

SWA_DEVICE float quad_max(float x) {
  x = fmaxf(x, ptx::shfl_xor(x, 1));
  return fmaxf(x, ptx::shfl_xor(x, 2));
}

SWA_DEVICE float quad_sum(float x) {
  x += ptx::shfl_xor(x, 1);
  return x + ptx::shfl_xor(x, 2);
}

// Turns scores into probabilities, updates the state, rescales the output. Slices that no row sees
// are left alone.
template <class Traits, int kSlices>
SWA_DEVICE void softmax_step(SliceScores (&s)[kSlices], const TileView<kSlices>& tile,
                             SoftmaxState& state, Output<Traits>& out) {
  float correction[2];
  SWA_UNROLL
  for (int r = 0; r < 2; ++r) {
    float row_max = state.max[r];
    SWA_UNROLL
    for (int i = 0; i < kSlices; ++i)
      for (int n = 0; tile.seen(i) && n < 2; ++n)
        row_max = fmaxf(row_max, fmaxf(s[i][n][2 * r], s[i][n][2 * r + 1]));
    row_max = quad_max(row_max);
    const float base = row_max == -INFINITY ? 0.f : row_max;
    correction[r] = ptx::ex2(state.max[r] - base);
    state.max[r] = row_max;
    state.sum[r] *= correction[r];
    SWA_UNROLL
    for (int i = 0; i < kSlices; ++i) {
      for (int n = 0; tile.seen(i) && n < 2; ++n) {
        for (int e = 0; e < 2; ++e) {
          float& x = s[i][n][2 * r + e];
          x = ptx::ex2(x - base);
          state.sum[r] += x;
        }
      }
    }
  }
  if (!ptx::any(correction[0] != 1.f || correction[1] != 1.f)) return;
  SWA_UNROLL
  for (int j = 0; j < Traits::kValueDim / 8; ++j)
    for (int i = 0; i < 4; ++i) out[j][i] *= correction[i / 2];
}

// The probabilities of a slice as the A operand, times the factors of a float8 V.
template <class Traits>
SWA_DEVICE void probabilities(uint32_t (&p)[4], const SliceScores& s, uint32_t slice,
                              const ScoreScale& scale) {
  float factor[2][2] = {{1.f, 1.f}, {1.f, 1.f}};
  if (Traits::kFloat8 && scale.scaled_values) {
    const uint32_t factors =
        slice + uint32_t(Traits::Slice::kValueScaleOffset) + uint32_t(ptx::lane_id() % 4 * 8);
    SWA_UNROLL
    for (int n = 0; n < 2; ++n) {
      const ptx::U32x2 pair = ptx::lds<ptx::U32x2>(factors + uint32_t(n * 32));
      factor[n][0] = ptx::bit_cast<float>(pair.x);
      factor[n][1] = ptx::bit_cast<float>(pair.y);
    }
  }
  SWA_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int n = i / 2, r = i % 2;
    p[i] =
        ptx::pack_half<Traits::kHalf>(s[n][2 * r] * factor[n][0], s[n][2 * r + 1] * factor[n][1]);
  }
}

// slice_at(i) is the shared-memory address of the i-th slice of the tile that starts at first_key;
// it is asked only for slices in which a row of the warp sees a key.
template <class Traits, int kSlices, class SliceAt>
SWA_DEVICE void attend_tile(const Query<Traits>& query, int first_key, const WarpRows& rows,
                            const ScoreScale& scale, SliceAt slice_at, SoftmaxState& state,
                            Output<Traits>& out) {
  if (rows.visibility(first_key, kSlices * kSliceKeys) == Visibility::kNone) return;
  TileView<kSlices> tile;
  tile.first_key = first_key;
  SWA_UNROLL
  for (int i = 0; i < kSlices; ++i) {
    tile.visibility[i] = rows.visibility(first_key + i * kSliceKeys, kSliceKeys);
    tile.slices[i] = tile.seen(i) ? slice_at(i) : 0u;
  }
  SliceScores s[kSlices];
  tile_scores<Traits, kSlices>(s, query, tile, rows, scale);
  softmax_step<Traits, kSlices>(s, tile, state, out);
  SWA_UNROLL
  for (int i = 0; i < kSlices; ++i) {
    if (!tile.seen(i)) continue;
    uint32_t p[4];
    probabilities<Traits>(p, s[i], tile.slices[i], scale);
    add_values<Traits>(out, p, tile.slices[i]);
  }
}

}  // namespace swa::cuda
