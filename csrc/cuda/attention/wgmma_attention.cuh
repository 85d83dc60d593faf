// Attention of a warpgroup's 64 rows with wgmma: products with tiles of keys and of values, and
// what makes probabilities of scores.
//
// A row's bits depend on what it sees and where that lies in tiles: keys that it does not see add
// exact zeros.
#pragma once
#include "cuda/attention/online_softmax.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/tile/kv_tile.cuh"

namespace swa::cuda {

constexpr int kWarpgroupRows = 64;
constexpr uint32_t kDescriptorUnit = 16;  // bytes

// A row of a panel to the next 8 rows; and to the same row of the next panel, as descriptors count.
constexpr uint32_t kRowGroupBytes = 8 * kPanelRowBytes;
template <int kRows>
constexpr uint64_t kPanelUnits = kRows * kPanelRowBytes / kDescriptorUnit;

// Scores of a warpgroup with kKeys keys: [slice of 16 keys], each as SliceScores.
template <int kKeys>
using KeyScores = float[kKeys / 2];
// Probabilities as the A operand: [slice].
template <int kKeys>
using KeyProbabilities = uint32_t[kKeys / kSliceKeys][4];

// 64 rows of queries, or the keys of a tile.
SWA_DEVICE uint64_t row_descriptor(uint32_t address) {
  return ptx::wgmma_descriptor(ptx::Swizzle::k128, address, 16, kRowGroupBytes);
}

// The values of a tile of kKeys keys from key 16 * step on, across all panels.
template <int kKeys>
SWA_DEVICE uint64_t value_descriptor(uint32_t values, int step) {
  constexpr uint32_t kPanelBytes = kKeys * kPanelRowBytes;
  return ptx::wgmma_descriptor(ptx::Swizzle::k128, values, kPanelBytes, kRowGroupBytes) +
         uint64_t(step) * (kSliceKeys * kPanelRowBytes / kDescriptorUnit);
}

// The products of scores from slice kDone on, where slice 0 is the kFirst-th of its tile: one per
// tile.
template <class Traits, int kTileKeys, int kFirst, int kDone, int kSize, class KeysAt>
SWA_DEVICE void multiply_keys(float (&s)[kSize], uint64_t q, KeysAt keys_at) {
  constexpr int kSlices = kSize / 8, kTileSlices = kTileKeys / kSliceKeys;
  constexpr int kTile = (kFirst + kDone) / kTileSlices, kRow = (kFirst + kDone) % kTileSlices;
  constexpr int kCount = ptx::min(kTileSlices - kRow, kSlices - kDone);
  const uint64_t k = row_descriptor(keys_at(kTile) + uint32_t(kRow * kSliceKeys * kPanelRowBytes));
  auto& part = reinterpret_cast<float (&)[kCount * 8]>(s[kDone * 8]);
  SWA_UNROLL
  for (int u = 0; u < Traits::kHeadDim / 16; ++u) {
    const uint64_t panel = uint64_t(u / 4), in_panel = uint64_t(u % 4 * 2);
    ptx::wgmma_ss<kCount * kSliceKeys, Traits::kHalf, ptx::Major::kK>(
        part, q + panel * kPanelUnits<kWarpgroupRows> + in_panel,
        k + panel * kPanelUnits<kTileKeys> + in_panel, u > 0);
  }
  if constexpr (kDone + kCount < kSlices)
    multiply_keys<Traits, kTileKeys, kFirst, kDone + kCount>(s, q, keys_at);
}

// Starts s = Q K^T with tiles of kTileKeys keys, from slice kFirst of the first one on. `queries`
// and keys_at(tile) are addresses.
template <class Traits, int kTileKeys, int kFirst = 0, int kSize, class KeysAt>
SWA_DEVICE void start_scores(float (&s)[kSize], uint32_t queries, KeysAt keys_at) {
  ptx::wgmma_fence(s);
  multiply_keys<Traits, kTileKeys, kFirst, 0>(s, row_descriptor(queries), keys_at);
  ptx::wgmma_commit();
}

// Products to scores, then to probabilities: 0 for keys that the row does not see.
template <int kKeys>
SWA_DEVICE void one_pass_softmax(KeyScores<kKeys>& s, int first_key, const WarpRows& rows,
                                 const ScoreScale& scale, SoftmaxState& state) {
  constexpr int kSlices = kKeys / kSliceKeys;
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

// The keys that some row of the warp does not see.
template <int kKeys>
SWA_DEVICE void mask_scores(KeyScores<kKeys>& s, int first_key, const WarpRows& rows) {
  const int t = ptx::lane_id() % 4;
  SWA_UNROLL
  for (int i = 0; i < kKeys / 2; ++i)
    if (!rows.sees(i / 2 % 2, first_key + i / 4 * 8 + 2 * t + i % 2)) s[i] = -INFINITY;
}

// Products with a tile of keys to probabilities, and what that does to the state; the output so far
// is to be multiplied by the corrections. The scale is above 0: it is applied where the maximum is
// subtracted.
template <int kKeys>
SWA_DEVICE void running_softmax(KeyScores<kKeys>& s, int first_key, const WarpRows& rows,
                                const ScoreScale& scale, SoftmaxState& state,
                                float (&correction)[2]) {
  float factor = scale.scale;
  if (scale.softcap > 0.f) {
    factor = 1.f;
    SWA_UNROLL
    for (float& x : s) x = scale(x);
  }
  if (rows.visibility(first_key, kKeys) != Visibility::kAll) mask_scores<kKeys>(s, first_key, rows);
  float row_max[2] = {-INFINITY, -INFINITY};
  SWA_UNROLL
  for (int i = 0; i < kKeys / 2; ++i) row_max[i / 2 % 2] = fmaxf(row_max[i / 2 % 2], s[i]);
  float base[2], sum[2][2] = {};
  SWA_UNROLL
  for (int r = 0; r < 2; ++r) {
    const float larger = fmaxf(state.max[r], quad_max(row_max[r]) * factor);
    base[r] = larger == -INFINITY ? 0.f : larger;
    correction[r] = ptx::ex2(state.max[r] - base[r]);
    state.max[r] = larger;
  }
  SWA_UNROLL
  for (int i = 0; i < kKeys / 2; ++i) {
    const int r = i / 2 % 2;
    s[i] = ptx::ex2(fmaf(s[i], factor, -base[r]));
    sum[r][i % 2] += s[i];  // two chains of additions in each row
  }
  SWA_UNROLL
  for (int r = 0; r < 2; ++r)
    state.sum[r] = fmaf(state.sum[r], correction[r], sum[r][0] + sum[r][1]);
}

// Whether the correction of a row of the warp is not 1.
SWA_DEVICE bool changes(const float (&correction)[2]) {
  return ptx::any(correction[0] != 1.f || correction[1] != 1.f);
}

template <class Traits>
SWA_DEVICE void rescale(Output<Traits>& out, const float (&correction)[2]) {
  SWA_UNROLL
  for (int j = 0; j < Traits::kValueDim / 8; ++j)
    for (int i = 0; i < 4; ++i) out[j][i] *= correction[i / 2];
}

template <class Traits, int kKeys>
SWA_DEVICE void pack_probabilities(KeyProbabilities<kKeys>& p, const KeyScores<kKeys>& s) {
  SWA_UNROLL
  for (int slice = 0; slice < kKeys / kSliceKeys; ++slice) {
    SWA_UNROLL
    for (int i = 0; i < 4; ++i)
      p[slice][i] = ptx::pack_half<Traits::kHalf>(s[slice * 8 + 2 * i], s[slice * 8 + 2 * i + 1]);
  }
}

template <class Traits>
using FlatOutput = float[Traits::kValueDim / 2];

template <class Traits>
SWA_DEVICE FlatOutput<Traits>& flat(Output<Traits>& out) {
  return reinterpret_cast<FlatOutput<Traits>&>(out);
}

// Starts out += P V, or out = P V, with tiles of kTileKeys keys, from slice `first` of the first
// one on. values_at(tile) is an address.
template <class Traits, int kTileKeys, int kSlices, class ValuesAt>
SWA_DEVICE void start_values(Output<Traits>& out, const uint32_t (&p)[kSlices][4],
                             ValuesAt values_at, bool accumulate, int first = 0) {
  constexpr int kColumns = ptx::min(Traits::kValueDim, 128);  // of a product
  constexpr int kSteps = kTileKeys / kSliceKeys;
  ptx::wgmma_fence(flat<Traits>(out));
  SWA_UNROLL
  for (int slice = 0; slice < kSlices; ++slice) {
    const uint32_t values = values_at((first + slice) / kSteps);
    SWA_UNROLL
    for (int part = 0; part < Traits::kValueDim / kColumns; ++part)
      ptx::wgmma_rs<kColumns, Traits::kHalf, ptx::Major::kMn>(
          reinterpret_cast<float (&)[kColumns / 2]>(out[part * kColumns / 8]), p[slice],
          value_descriptor<kTileKeys>(values, (first + slice) % kSteps) +
              uint64_t(part * kColumns / kPanelElements) * kPanelUnits<kTileKeys>,
          accumulate || slice > 0);
  }
  ptx::wgmma_commit();
}

}  // namespace swa::cuda
