// Consecutive keys of one KV head as TMA brings them and wgmma reads them, at a multiple of their
// number in the sequence: panels of 64 elements, a row of a panel is the 128 bytes in which the
// 128-byte swizzle exchanges 16-byte chunks. K's panels come first, then V's.
#pragma once
#include "cuda/tile/panel.cuh"

namespace swa::cuda {

constexpr int kPanelRowBytes = KvPanel<2>::kRowBytes;

SWA_DEVICE uint32_t panel_offset(int rows, int row, int chunk) {
  return KvPanel<2>::offset(rows, row, chunk);
}

template <int kHeadDim, int kValueDim, int kKeys_ = 64>
struct KvTile {
  static constexpr int kKeys = kKeys_, kPanelBytes = kKeys * kPanelRowBytes;
  static constexpr int kKeyPanels = kHeadDim / kPanelElements;
  static constexpr int kValuePanels = kValueDim / kPanelElements;
  static constexpr int kPanels = kKeyPanels + kValuePanels;
  static constexpr int kKeyBytes = kKeyPanels * kPanelBytes;
  static constexpr int kValueBytes = kValuePanels * kPanelBytes;
  static constexpr int kValueOffset = kKeyBytes, kBytes = kKeyBytes + kValueBytes;
  static_assert(kHeadDim % kPanelElements == 0 && kValueDim % kPanelElements == 0,
                "dims are cut into panels");
};

}  // namespace swa::cuda
