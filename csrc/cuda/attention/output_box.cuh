// Outputs of a warp's 16 rows by TMA: 64 columns at a time through a panel of the warp's own in
// shared memory. Whole lines leave without a thread waiting for them.
#pragma once
#include "cuda/attention/values.cuh"
#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/sync.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/tile/kv_tile.cuh"

namespace swa::cuda {

constexpr int kOutputPanelBytes = 16 * kPanelRowBytes;  // kWarpRows rows

// The panel has been read by the stores so far, and may be written again.
SWA_DEVICE void wait_for_output_panel() {
  if (ptx::lane_id() == 0) ptx::bulk_wait_read<0>();
  ptx::sync_warp();
}

// Stores the rows times factor[row / 8]. The map's boxes are the 16 rows: some heads of some
// tokens, from head `head` of row `row` of the output on. Ends with the last store on its way.
template <class Traits>
SWA_DEVICE void store_box(const ptx::TensorMap& map, uint32_t panel, int head, int row,
                          const float (&factor)[2], const Output<Traits>& out) {
  const int lane = ptx::lane_id(), panel_row = lane % 16;
  SWA_UNROLL
  for (int first = 0; first < Traits::kValueDim; first += kPanelElements) {
    wait_for_output_panel();
    SWA_UNROLL
    for (int j = first / 8; j < (first + kPanelElements) / 8; j += 2) {
      uint32_t x[4];  // 8 columns of rows 0-7, of rows 8-15, then the next 8 columns
      SWA_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float* pair = out[j + i / 2] + i % 2 * 2;
        x[i] = ptx::pack_half<Traits::kHalf>(pair[0] * factor[i % 2], pair[1] * factor[i % 2]);
      }
      ptx::stmatrix_x4(panel + panel_offset(16, panel_row, j - first / 8 + lane / 16), x);
    }
    ptx::fence_proxy_async();
    ptx::sync_warp();
    if (lane == 0) {
      ptx::tma_store_3d(&map, panel, first, head, row);
      ptx::bulk_commit();
    }
  }
}

}  // namespace swa::cuda
