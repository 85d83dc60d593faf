// How decode cuts a long range of keys: into splits of a fixed size at absolute positions, so that
// a row's bits do not depend on the lengths in the batch and nothing is planned on the host.
#pragma once
#include "cuda/params.h"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/platform.cuh"

namespace swa::cuda {

constexpr int kSplitKeys = 1024;

// The most splits that the keys of one sequence can touch; 1: they are not cut. Windows of up to
// kSplitKeys are never cut.
inline int max_decode_splits(int window, int q_len, int64_t max_keys) {
  if (window <= kSplitKeys || max_keys <= kSplitKeys) return 1;
  const int64_t keys = int64_t(window) + q_len - 1;
  const int64_t touched = (keys + kSplitKeys - 2) / kSplitKeys + 1;
  return int(ptx::min(touched, (max_keys + kSplitKeys - 1) / kSplitKeys));
}

struct KeyRange {
  int begin, end;
};

// The keys that some query of a sequence sees.
SWA_DEVICE KeyRange visible_keys(const AttentionParams& p, int seqlen_k) {
  return {ptx::max(0, seqlen_k - p.q_len - p.window + 1), seqlen_k};
}

// How many splits those keys touch.
SWA_DEVICE int splits_touched(KeyRange keys) {
  return keys.end <= keys.begin ? 0 : (keys.end - 1) / kSplitKeys - keys.begin / kSplitKeys + 1;
}

// The part of `keys` in the index-th split that they touch.
SWA_DEVICE KeyRange split_of(KeyRange keys, int index) {
  const int first = (keys.begin / kSplitKeys + index) * kSplitKeys;
  return {ptx::max(keys.begin, first), ptx::min(keys.end, first + kSplitKeys)};
}

}  // namespace swa::cuda
