// Rows of a device page by TMA.
#pragma once
#include "cuda/ptx/tma.cuh"
#include "cuda/tile/panel.cuh"

namespace swa::cuda {

// By one thread: the box of one KV head's keys from slot `slot` of page `page` on, as kPanels parts
// of as many panels, of kPanelBytes each; `dst` is its first row in the first panel. Completes on
// `landed`.
template <int kPanels, int kPanelBytes>
SWA_DEVICE void load_page_box(uint32_t dst, uint32_t landed, const ptx::TensorMap& map, int kv_head,
                              int page, int slot) {
  SWA_UNROLL
  for (int i = 0; i < kPanels; ++i)
    ptx::tma_load_4d(dst + uint32_t(i * kPanelBytes), &map, landed, i * kPanelElements, kv_head,
                     slot, page);
}

}  // namespace swa::cuda
