// The unit in which keys and values lie in shared memory: a slice, 16 consecutive keys of one KV
// head, K's panels then V's, in the pool's dtype.
//
// A panel has 64 elements of each row. 16-byte chunks of it are exchanged as TMA's 128-byte swizzle
// does, for float8 as the 64-byte swizzle does, which leaves all ways to touch them free of bank
// conflicts:
//   cp.async    8 or 4 lanes write a row of a panel
//   K           lane (g, t) reads 8 elements of row g where element_of says: 16 bytes in phases of
//               two rows, or 8 bytes (float8) in phases of four
//   V           ldmatrix.trans reads a chunk of 8 rows per phase
#pragma once
#include "cuda/tile/panel.cuh"

namespace swa::cuda {

constexpr int kSliceKeys = 16;

template <int kHeadDim, int kValueDim, int kElementBytes>
struct KvSlice {
  using Panel = KvPanel<kElementBytes>;
  static constexpr int kPanelBytes = kSliceKeys * Panel::kRowBytes;
  static constexpr int kKeyPanels = kHeadDim / kPanelElements;
  static constexpr int kValuePanels = kValueDim / kPanelElements;
  static constexpr int kKeyRowBytes = kHeadDim * kElementBytes;
  static constexpr int kValueRowBytes = kValueDim * kElementBytes;
  static constexpr int kValueOffset = kKeyPanels * kPanelBytes;
  // float8 only: the factors of K and V, a float per key each.
  static constexpr int kKeyScaleOffset = kValueOffset + kValuePanels * kPanelBytes;
  static constexpr int kValueScaleOffset = kKeyScaleOffset + kSliceKeys * int(sizeof(float));
  static constexpr int kBytes =
      kKeyScaleOffset + (kElementBytes == 1 ? 2 * kSliceKeys * int(sizeof(float)) : 0);
  static_assert(kBytes % 128 == 0, "slices start at bank 0");

  // The first of the 8 elements of head_dim that lane t of a row takes of unit u, in which products
  // with K go: 32 elements.
  static SWA_DEVICE int element_of(int u, int t) {
    const int panel = u / 2 * kPanelElements;
    if constexpr (kElementBytes == 2)
      return panel + t * 16 + u % 2 * 8;
    else
      return panel + t / 2 * 32 + u % 2 * 16 + t % 2 * 8;
  }

  // Byte offset of a 16-byte chunk of a K row from the start of the slice.
  static SWA_DEVICE uint32_t key_offset(int row, int chunk) {
    return Panel::offset(kSliceKeys, row, chunk);
  }
  static SWA_DEVICE uint32_t value_offset(int row, int chunk) {
    return uint32_t(kValueOffset) + Panel::offset(kSliceKeys, row, chunk);
  }
};

}  // namespace swa::cuda
