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

// Where keys may be that some row does not see: kAtEdges is in the first and the last slice.
enum class Unseen { kAnywhere, kAtEdges };

// Takes away the keys that a row does not see.
template <Unseen kUnseen, int kKeys>
SWA_DEVICE void mask_scores(KeyScores<kKeys>& s, int first_key, const WarpRows& rows) {
  constexpr int kSlice = 8;  // scores of a thread
  if (kUnseen == Unseen::kAnywhere && rows.visibility(first_key, kKeys) == Visibility::kAll) return;
  // From the lane's first key on, so that a key is a constant and needs no register.
  const int first = first_key + 2 * (ptx::lane_id() % 4);
  int before[2], last[2];
  SWA_UNROLL
  for (int r = 0; r < 2; ++r) {
    before[r] = ptx::max(rows.position[r] - rows.window, -1) - first;
    last[r] = rows.position[r] - first;
  }
  SWA_UNROLL
  for (int i = 0; i < kKeys / 2; ++i) {
    if (kUnseen == Unseen::kAtEdges && i >= kSlice && i < kKeys / 2 - kSlice) continue;
    const int r = i / 2 % 2, key = i / 4 * 8 + i % 2;
    if (key > last[r] || key <= before[r]) s[i] = -INFINITY;
  }
}

// Caps the scores if there is a softcap. Returns what they are still to be multiplied with, above
// 0: it is applied where the maximum is subtracted.
template <int kSize>
SWA_DEVICE float apply_softcap(float (&s)[kSize], const ScoreScale& scale) {
  if (scale.softcap <= 0.f) return scale.scale;
  SWA_UNROLL
  for (float& x : s) x = scale(x);
  return 1.f;
}

// What is subtracted from a row's scores, and what the sums and outputs so far are to be multiplied
// with.
struct NewMaxima {
  float base[2], correction[2];
};

template <int kSize>
SWA_DEVICE NewMaxima raise_maxima(const float (&s)[kSize], float factor, SoftmaxState& state) {
  float row_max[2] = {-INFINITY, -INFINITY};
  SWA_UNROLL
  for (int i = 0; i < kSize; ++i) row_max[i / 2 % 2] = fmaxf(row_max[i / 2 % 2], s[i]);
  NewMaxima maxima;
  SWA_UNROLL
  for (int r = 0; r < 2; ++r) {
    const float larger = fmaxf(state.max[r], quad_max(row_max[r]) * factor);
    maxima.base[r] = larger == -INFINITY ? 0.f : larger;
    maxima.correction[r] = ptx::ex2(state.max[r] - maxima.base[r]);
    state.max[r] = larger;
  }
  return maxima;
}

// Scores to probabilities, added to `sum`: two chains of additions in each row.
template <int kSize>
SWA_DEVICE void exponentials(float (&s)[kSize], float factor, const NewMaxima& maxima,
                             float (&sum)[2][2]) {
  SWA_UNROLL
  for (int i = 0; i < kSize; ++i) {
    const int r = i / 2 % 2;
    s[i] = ptx::ex2(fmaf(s[i], factor, -maxima.base[r]));
    sum[r][i % 2] += s[i];
  }
}

SWA_DEVICE void add_sums(SoftmaxState& state, const NewMaxima& maxima, const float (&sum)[2][2]) {
  SWA_UNROLL
  for (int r = 0; r < 2; ++r)
    state.sum[r] = fmaf(state.sum[r], maxima.correction[r], sum[r][0] + sum[r][1]);
}

// Products with a tile of keys to probabilities, and what that does to the state; the output so far
// is to be multiplied by the corrections.
template <int kKeys>
SWA_DEVICE void running_softmax(KeyScores<kKeys>& s, int first_key, const WarpRows& rows,
                                const ScoreScale& scale, SoftmaxState& state,
                                float (&correction)[2]) {
  const float factor = apply_softcap(s, scale);
  mask_scores<Unseen::kAnywhere, kKeys>(s, first_key, rows);
  const NewMaxima maxima = raise_maxima(s, factor, state);
  float sum[2][2] = {};
  exponentials(s, factor, maxima, sum);
  add_sums(state, maxima, sum);
  for (int r = 0; r < 2; ++r) correction[r] = maxima.correction[r];
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

template <class Traits>
SWA_DEVICE void pack_slice(uint32_t (&p)[4], const float (&s)[8]) {
  SWA_UNROLL
  for (int i = 0; i < 4; ++i) p[i] = ptx::pack_half<Traits::kHalf>(s[2 * i], s[2 * i + 1]);
}

// The scores of one slice.
template <int kSize>
SWA_DEVICE float (&slice_of(float (&s)[kSize], int slice))[8] {
  return reinterpret_cast<float (&)[8]>(s[slice * 8]);
}

template <class Traits, int kKeys>
SWA_DEVICE void pack_probabilities(KeyProbabilities<kKeys>& p, KeyScores<kKeys>& s) {
  SWA_UNROLL
  for (int slice = 0; slice < kKeys / kSliceKeys; ++slice)
    pack_slice<Traits>(p[slice], slice_of(s, slice));
}

// The softmax of rows whose keys are all there, slice by slice, so that packed probabilities take
// the place of scores. The bits are those of running_softmax.
template <class Traits, Unseen kUnseen, int kKeys>
SWA_DEVICE void whole_softmax(KeyProbabilities<kKeys>& p, KeyScores<kKeys>& s, int first_key,
                              const WarpRows& rows, float factor, SoftmaxState& state) {
  mask_scores<kUnseen, kKeys>(s, first_key, rows);
  const NewMaxima maxima = raise_maxima(s, factor, state);
  float sum[2][2] = {};
  SWA_UNROLL
  for (int slice = 0; slice < kKeys / kSliceKeys; ++slice) {
    exponentials(slice_of(s, slice), factor, maxima, sum);
    pack_slice<Traits>(p[slice], slice_of(s, slice));
  }
  add_sums(state, maxima, sum);
}

template <class Traits>
using FlatOutput = float[Traits::kValueDim / 2];

template <class Traits>
SWA_DEVICE FlatOutput<Traits>& flat(Output<Traits>& out) {
  return reinterpret_cast<FlatOutput<Traits>&>(out);
}

// Starts out += P V, or out = P V, with tiles of kTileKeys keys, from slice kFirst of the first one
// on. values_at(tile) is an address.
template <class Traits, int kTileKeys, int kFirst = 0, int kSlices, class ValuesAt>
SWA_DEVICE void start_values(Output<Traits>& out, const uint32_t (&p)[kSlices][4],
                             ValuesAt values_at, bool accumulate) {
  constexpr int kColumns = ptx::min(Traits::kValueDim, 128);  // of a product
  constexpr int kSteps = kTileKeys / kSliceKeys;
  ptx::wgmma_fence(flat<Traits>(out));
  SWA_UNROLL
  for (int slice = 0; slice < kSlices; ++slice) {
    const uint32_t values = values_at((kFirst + slice) / kSteps);
    SWA_UNROLL
    for (int part = 0; part < Traits::kValueDim / kColumns; ++part)
      ptx::wgmma_rs<kColumns, Traits::kHalf, ptx::Major::kMn>(
          reinterpret_cast<float (&)[kColumns / 2]>(out[part * kColumns / 8]), p[slice],
          value_descriptor<kTileKeys>(values, (kFirst + slice) % kSteps) +
              uint64_t(part * kColumns / kPanelElements) * kPanelUnits<kTileKeys>,
          accumulate || slice > 0);
  }
  ptx::wgmma_commit();
}

// Attention to num_tiles tiles from tile number first_tile of the sequence on: the softmax of a
// tile's scores runs under the product with the values of the tile before. `tiles` has, for the
// i-th of them: keys(i) and values(i), addresses, when they are there; keys_read(i) and
// values_read(i), called when they have been used. `out` holds zeros.
template <class Traits, int kTileKeys, class TilesOf>
SWA_DEVICE void attend_tiles(const TilesOf& tiles, int first_tile, int num_tiles, uint32_t queries,
                             const WarpRows& rows, const ScoreScale& scale, SoftmaxState& state,
                             Output<Traits>& out) {
  KeyScores<kTileKeys> s;
  KeyProbabilities<kTileKeys> probabilities;
  float correction[2];
  const auto multiply_keys = [&](int i) {
    const uint32_t keys = tiles.keys(i);
    start_scores<Traits, kTileKeys>(s, queries, [&](int) { return keys; });
  };
  const auto multiply_values = [&](int i) {
    const uint32_t values = tiles.values(i);
    start_values<Traits, kTileKeys>(out, probabilities, [&](int) { return values; }, true);
  };
  const auto softmax = [&](int i) {
    running_softmax<kTileKeys>(s, (first_tile + i) * kTileKeys, rows, scale, state, correction);
  };
  const int last = num_tiles - 1;
  multiply_keys(0);
  ptx::wgmma_wait<0>(s);
  tiles.keys_read(0);
  softmax(0);  // the output is 0 yet
  pack_probabilities<Traits, kTileKeys>(probabilities, s);
  for (int i = 0; i < last; ++i) {
    multiply_keys(i + 1);
    multiply_values(i);
    ptx::wgmma_wait<1>(s);
    tiles.keys_read(i + 1);
    softmax(i + 1);
    ptx::pin_registers(s);
    if (changes(correction)) {
      ptx::wgmma_wait<0>(flat<Traits>(out));
      rescale<Traits>(out, correction);
    }
    ptx::wgmma_wait<0>(flat<Traits>(out));
    tiles.values_read(i);
    pack_probabilities<Traits, kTileKeys>(probabilities, s);
  }
  multiply_values(last);
  ptx::wgmma_wait<0>(flat<Traits>(out));
  tiles.values_read(last);
}

}  // namespace swa::cuda
