// Attention of a warpgroup's 64 rows over up to a few tiles of keys that hold all the rows see: one
// product for the scores, one pass of softmax, one product with V.
//
// A row's bits depend on what it sees and where that lies in tiles at multiples of 64: keys that it
// does not see add exact zeros.
#pragma once
#include "cuda/attention/online_softmax.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/tile/kv_tile.cuh"

namespace swa::cuda {

constexpr int kWarpgroupRows = 64;
constexpr uint32_t kDescriptorUnit = 16;  // bytes

// Scores of a warpgroup with kTiles tiles: [slice of 16 keys], each as SliceScores.
template <int kTiles>
using TileScores = float[kTiles * 32];

// 64 rows of queries, or a tile's keys: panels of 64 rows.
SWA_DEVICE uint64_t row_descriptor(uint32_t address) {
  return ptx::wgmma_descriptor(ptx::Swizzle::k128, address, 16, 8 * kPanelRowBytes);
}

// A tile's values from key 16 * step on, across all panels.
SWA_DEVICE uint64_t value_descriptor(uint32_t values, int step) {
  constexpr uint32_t kPanelBytes = 64 * kPanelRowBytes;
  return ptx::wgmma_descriptor(ptx::Swizzle::k128, values, kPanelBytes, 8 * kPanelRowBytes) +
         uint64_t(step) * (kSliceKeys * kPanelRowBytes / kDescriptorUnit);
}

// s = Q K^T. `queries` and tile_at(i) are addresses; on return they have been read.
template <class Traits, int kTiles, class TileAt>
SWA_DEVICE void multiply_keys(TileScores<kTiles>& s, uint32_t queries, TileAt tile_at) {
  constexpr uint64_t kPanel = 64 * kPanelRowBytes / kDescriptorUnit;
  const uint64_t q = row_descriptor(queries);
  ptx::wgmma_fence(s);
  SWA_UNROLL
  for (int i = 0; i < kTiles; ++i) {
    const uint64_t k = row_descriptor(tile_at(i));
    SWA_UNROLL
    for (int u = 0; u < Traits::kHeadDim / 16; ++u) {
      const uint64_t at = uint64_t(u / 4) * kPanel + uint64_t(u % 4 * 2);
      ptx::wgmma_ss<64, Traits::kHalf, ptx::Major::kK>(reinterpret_cast<float (&)[32]>(s[i * 32]),
                                                       q + at, k + at, u > 0);
    }
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>(s);
}

// Products to scores, then to probabilities: 0 for keys that the row does not see.
template <int kTiles>
SWA_DEVICE void one_pass_softmax(TileScores<kTiles>& s, int first_key, const WarpRows& rows,
                                 const ScoreScale& scale, SoftmaxState& state) {
  constexpr int kSlices = kTiles * 4;
  const int t = ptx::lane_id() % 4;
  if (scale.softcap > 0.f) {  // outside the loop over slices, which would have a branch per score
    SWA_UNROLL
    for (float& x : s) x = scale(x);
  } else {
    SWA_UNROLL
    for (float& x : s) x *= scale.scale;
  }
  float row_max[2] = {-INFINITY, -INFINITY};
  SWA_UNROLL
  for (int slice = 0; slice < kSlices; ++slice) {
    const int first = first_key + slice * kSliceKeys;
    const Visibility visibility = rows.visibility(first, kSliceKeys);
    SWA_UNROLL
    for (int i = 0; i < 8; ++i) {
      float& x = s[slice * 8 + i];
      const int r = i / 2 % 2, key = first + i / 4 * 8 + 2 * t + i % 2;
      if (visibility == Visibility::kNone) x = -INFINITY;
      if (visibility == Visibility::kSome && !rows.sees(r, key)) x = -INFINITY;
      row_max[r] = fmaxf(row_max[r], x);
    }
  }
  SWA_UNROLL
  for (int r = 0; r < 2; ++r) state.max[r] = quad_max(row_max[r]);
  const float base[2] = {state.max[0] == -INFINITY ? 0.f : state.max[0],
                         state.max[1] == -INFINITY ? 0.f : state.max[1]};
  SWA_UNROLL
  for (int slice = 0; slice < kSlices; ++slice) {
    const bool seen =
        rows.visibility(first_key + slice * kSliceKeys, kSliceKeys) != Visibility::kNone;
    SWA_UNROLL
    for (int i = 0; i < 8; ++i) {
      float& x = s[slice * 8 + i];
      const int r = i / 2 % 2;
      x = seen ? ptx::ex2(x - base[r]) : 0.f;
      state.sum[r] += x;
    }
  }
}

// out = P V; on return the tiles have been read.
template <class Traits, int kTiles, class TileAt>
SWA_DEVICE void multiply_values(Output<Traits>& out, const TileScores<kTiles>& s, TileAt tile_at) {
  using Tile = KvTile<Traits::kHeadDim, Traits::kValueDim>;
  uint32_t p[kTiles * 4][4];
  SWA_UNROLL
  for (int slice = 0; slice < kTiles * 4; ++slice) {
    SWA_UNROLL
    for (int i = 0; i < 4; ++i)
      p[slice][i] = ptx::pack_half<Traits::kHalf>(s[slice * 8 + 2 * i], s[slice * 8 + 2 * i + 1]);
  }
  auto& flat = reinterpret_cast<float (&)[Traits::kValueDim / 2]>(out);
  ptx::wgmma_fence(flat);
  SWA_UNROLL
  for (int i = 0; i < kTiles; ++i) {
    const uint32_t values = tile_at(i) + uint32_t(Tile::kValueOffset);
    SWA_UNROLL
    for (int step = 0; step < 4; ++step)
      ptx::wgmma_rs<Traits::kValueDim, Traits::kHalf, ptx::Major::kMn>(
          flat, p[i * 4 + step], value_descriptor(values, step), i + step > 0);
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>(flat);
}

}  // namespace swa::cuda
