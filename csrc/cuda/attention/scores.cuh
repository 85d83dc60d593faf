// Scores of a slice: S = Q K^T for 16 rows and 16 keys, then scale, softcap and mask.
#pragma once
#include "cuda/attention/query.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/tile/fp8.cuh"
#include "cuda/tile/traits.cuh"

namespace swa::cuda {

// Scores as mma gives them: [8 keys][row g: keys 2 t, 2 t + 1; row g + 8: the same].
using SliceScores = float[2][4];

constexpr float kLog2e = 1.4426950408889634f;

// From q.k to the exponent of 2.
struct ScoreScale {
  float scale;       // q.k times this, in base 2 unless capped
  float softcap;     // 0: none; else score -> softcap * tanh(score / softcap)
  bool scaled_keys;  // float8: K has factors in the slice
  bool scaled_values;

  SWA_DEVICE explicit ScoreScale(const AttentionParams& p)
      : scale(p.softcap > 0.f ? p.softmax_scale / p.softcap : p.softmax_scale * kLog2e),
        softcap(p.softcap),
        scaled_keys(p.k.scale != nullptr),
        scaled_values(p.v.scale != nullptr) {}

  // tanh through exp: 1 - 2 / (e^2x + 1), which keeps its accuracy in the sum and cannot overflow;
  // the quotient by its logarithm, since a division has a slow path with a branch.
  SWA_DEVICE float operator()(float product) const {
    const float x = product * scale;
    if (softcap <= 0.f) return x;
    return softcap * kLog2e * (1.f - ptx::ex2(1.f - ptx::lg2(ptx::ex2(2.f * kLog2e * x) + 1.f)));
  }
};

// s_even and s_odd += Q K^T over the two k-steps of unit u of head_dim; they may be the same.
template <class Traits>
SWA_DEVICE void multiply_unit(SliceScores& s_even, SliceScores& s_odd,
                              const typename Query<Traits>::Unit& a, uint32_t slice, int u) {
  using Slice = typename Traits::Slice;
  constexpr ptx::Half kHalf = Traits::kHalf;
  const int g = ptx::lane_id() / 4, element = Slice::element_of(u, ptx::lane_id() % 4);
  SWA_UNROLL
  for (int n = 0; n < 2; ++n) {
    ptx::U32x4 k;
    if constexpr (Traits::kFloat8) {
      const ptx::U32x2 raw = ptx::lds<ptx::U32x2>(
          slice + Slice::key_offset(8 * n + g, element / 16) + uint32_t(element % 16));
      k = {decode_e4m3_pair<kHalf>(raw.x), decode_e4m3_pair<kHalf>(raw.x >> 16),
           decode_e4m3_pair<kHalf>(raw.y), decode_e4m3_pair<kHalf>(raw.y >> 16)};
    } else {
      k = ptx::lds<ptx::U32x4>(slice + Slice::key_offset(8 * n + g, element / 8));
    }
    ptx::mma_m16n8k16<kHalf>(s_even[n], a[0], k.x, k.y);
    ptx::mma_m16n8k16<kHalf>(s_odd[n], a[1], k.z, k.w);
  }
}

// Products to scores in base 2 for the keys first_key .. first_key + 15; -inf where a row does not
// see the key.
template <class Traits>
SWA_DEVICE void finish_scores(SliceScores& s, uint32_t slice, int first_key, const WarpRows& rows,
                              Visibility visibility, const ScoreScale& scale) {
  const int t = ptx::lane_id() % 4;
  SWA_UNROLL
  for (int n = 0; n < 2; ++n) {
    SWA_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int key = 8 * n + 2 * t + e;
      float factor = 1.f;
      if (Traits::kFloat8 && scale.scaled_keys)
        factor = ptx::lds<float>(slice + uint32_t(Traits::Slice::kKeyScaleOffset + key * 4));
      SWA_UNROLL
      for (int r = 0; r < 2; ++r) {
        float& x = s[n][2 * r + e];
        x = scale(Traits::kFloat8 ? x * factor : x);
        if (visibility == Visibility::kSome && !rows.sees(r, first_key + key)) x = -INFINITY;
      }
    }
  }
}

// The keys of a tile as a warp meets them.
template <int kSlices>
struct TileView {
  int first_key;
  Visibility visibility[kSlices];
  uint32_t slices[kSlices];  // addresses; 0 for a slice that no row sees

  SWA_DEVICE bool seen(int i) const { return visibility[i] != Visibility::kNone; }
};

// Products of the rows with one slice. A product waits for the one before it in its sum, so that
// even and odd k-steps have sums of their own.
template <class Traits>
SWA_DEVICE void multiply_slice(SliceScores& s, const Query<Traits>& query, uint32_t slice) {
  constexpr int kUnits = Traits::kHeadDim / 32;
  SliceScores odd = {};
  typename Query<Traits>::Unit a;
  if constexpr (Query<Traits>::kInRegisters) {
    SWA_UNROLL
    for (int u = 0; u < kUnits; ++u) {
      query.unit(a, u);
      multiply_unit<Traits>(s, odd, a, slice, u);
    }
  } else {
    SWA_UNROLL_4
    for (int u = 0; u < kUnits; ++u) {
      query.unit(a, u);
      multiply_unit<Traits>(s, odd, a, slice, u);
    }
  }
  SWA_UNROLL
  for (int i = 0; i < 8; ++i) s[i / 4][i % 4] += odd[i / 4][i % 4];
}

// The same with the slices of a tile that some row sees, whose sums do not wait for each other.
template <class Traits, int kSlices>
SWA_DEVICE void multiply_slices(SliceScores (&s)[kSlices], const Query<Traits>& query,
                                const TileView<kSlices>& tile) {
  constexpr int kUnits = Traits::kHeadDim / 32;
  typename Query<Traits>::Unit a;
  if constexpr (Query<Traits>::kInRegisters) {
    SWA_UNROLL
    for (int i = 0; i < kSlices; ++i) {
      if (!tile.seen(i)) continue;
      SWA_UNROLL
      for (int u = 0; u < kUnits; ++u) {
        query.unit(a, u);
        multiply_unit<Traits>(s[i], s[i], a, tile.slices[i], u);
      }
    }
  } else {
    SWA_UNROLL
    for (int u = 0; u < kUnits; ++u) {
      query.unit(a, u);
      SWA_UNROLL
      for (int i = 0; i < kSlices; ++i)
        if (tile.seen(i)) multiply_unit<Traits>(s[i], s[i], a, tile.slices[i], u);
    }
  }
}

// Scores of the rows with the slices of a tile that some row sees.
template <class Traits, int kSlices>
SWA_DEVICE void tile_scores(SliceScores (&s)[kSlices], const Query<Traits>& query,
                            const TileView<kSlices>& tile, const WarpRows& rows,
                            const ScoreScale& scale) {
  SWA_UNROLL
  for (int i = 0; i < kSlices; ++i)
    for (int j = 0; j < 8; ++j) s[i][j / 4][j % 4] = 0.f;
  if constexpr (kSlices == 1) {
    if (tile.seen(0)) multiply_slice<Traits>(s[0], query, tile.slices[0]);
  } else {
    multiply_slices<Traits, kSlices>(s, query, tile);
  }
  SWA_UNROLL
  for (int i = 0; i < kSlices; ++i)
    if (tile.seen(i))
      finish_scores<Traits>(s[i], tile.slices[i], tile.first_key + i * kSliceKeys, rows,
                            tile.visibility[i], scale);
}

}  // namespace swa::cuda
