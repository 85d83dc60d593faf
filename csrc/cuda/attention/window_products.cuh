// Which slices of keys a warpgroup multiplies where all that its rows see of a window is one
// accumulator of scores.
#pragma once
#include "cuda/attention/wgmma_attention.cuh"

namespace swa::cuda {

constexpr int kWindowTileKeys = 64, kWindowTileSlices = kWindowTileKeys / kSliceKeys;

// The widest window of which every position's keys, with those of the other tokens of its step, are
// kOnePassTiles tiles: 32 scores a tile and thread, which with outputs and packed probabilities is
// what registers hold.
constexpr int kOnePassTiles = 3, kOnePassWindow = (kOnePassTiles - 1) * kWindowTileKeys + 1;
// What up to 16 tokens see of a window of 128 or 129 keys; three tiles have 12.
constexpr int kNarrowSlices = 9;

SWA_DEVICE int first_key_for(int position, int window) {
  return ptx::max(0, position - window + 1);
}

// Slices of keys of a consumer's step.
struct Slices {
  int tile;         // the first of the first tile
  int first, last;  // that some row sees
  int seen_by_all_from, seen_by_all_to;
};

// Of tokens at positions first .. last.
SWA_DEVICE Slices slices_of(int first, int last, int window) {
  const int begin = first_key_for(first, window), end = first_key_for(last, window);
  return {begin / kWindowTileKeys * kWindowTileSlices, begin / kSliceKeys, last / kSliceKeys,
          (end + kSliceKeys - 1) / kSliceKeys, (first + 1) / kSliceKeys - 1};
}

// What is compiled for itself: kCount slices, from slice kFirst of the first tile on. What is
// usual, four of them in turn, is kept short, to stay in the instruction cache.
template <int kFirst_, int kCount_, bool kUsual>
struct Products {
  static constexpr int kFirst = kFirst_, kCount = kCount_;
  static constexpr Unseen kUnseen = kUsual ? Unseen::kAtEdges : Unseen::kAnywhere;
  static constexpr bool kMayBeCapped = !kUsual;
};
template <int kFirst>
using NarrowProducts = Products<kFirst, kNarrowSlices, true>;
template <int kTiles>
using TileProducts = Products<0, kTiles * kWindowTileSlices, false>;

// Calls attend(Products) with products that have all visible keys: the last kNarrowSlices slices if
// there are no more and every row sees those between the first and the last one, which is how
// windows of kNarrowSlices slices go by; else whole tiles.
template <class Attend>
SWA_DEVICE void choose_products(const Slices& slices, bool may_be_narrow, Attend attend) {
  const int first = slices.last - kNarrowSlices + 1, narrow = first - slices.tile;
  const bool is_narrow = may_be_narrow && narrow >= 0 && narrow < kWindowTileSlices &&
                         first <= slices.first && first + 1 >= slices.seen_by_all_from &&
                         slices.last - 1 <= slices.seen_by_all_to;
  const int tiles = (slices.last - slices.tile) / kWindowTileSlices + 1;
  switch (is_narrow ? narrow : kWindowTileSlices + tiles - 1) {
    case 0:
      return attend(NarrowProducts<0>());
    case 1:
      return attend(NarrowProducts<1>());
    case 2:
      return attend(NarrowProducts<2>());
    case 3:
      return attend(NarrowProducts<3>());
    case kWindowTileSlices:
      return attend(TileProducts<1>());
    case kWindowTileSlices + 1:
      return attend(TileProducts<2>());
    default:
      return attend(TileProducts<kOnePassTiles>());
  }
}

}  // namespace swa::cuda
