// Rows of keys, values or queries as TMA brings them: panels of 64 elements, in which the swizzle
// mode as wide as a panel's row exchanges 16-byte chunks.
#pragma once
#include "cuda/ptx/platform.cuh"
#include "cuda/ptx/swizzle.cuh"

namespace swa::cuda {

constexpr int kPanelElements = 64;

template <int kElementBytes>
struct KvPanel {
  static constexpr int kRowBytes = kPanelElements * kElementBytes;
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr ptx::Swizzle kSwizzle =
      kElementBytes == 2 ? ptx::Swizzle::k128 : ptx::Swizzle::k64;
  static constexpr int kAlignment = 8 * kRowBytes;  // of panels, and of boxes in them

  // Byte offset of a 16-byte chunk of a row, from the start of panels with `rows` rows each.
  static SWA_DEVICE uint32_t offset(int rows, int row, int chunk) {
    const int exchange = kElementBytes == 2 ? row : row >> 1;
    return uint32_t((chunk / kChunks * rows + row) * kRowBytes) +
           uint32_t(((chunk ^ exchange) & (kChunks - 1)) << 4);
  }
};

}  // namespace swa::cuda
