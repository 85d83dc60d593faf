// Slices of a sequence's keys and values from their pages to shared memory on Hopper: by TMA those
// that lie on device pages and wholly inside the range; row by row, with the lanes' own copies, the
// others: slices at the edges of the range, of which no byte outside it is asked for, and host
// pages.
#pragma once
#include "cuda/attention/kv_loader.cuh"
#include "cuda/attention/page_box.cuh"
#include "cuda/ptx/mbarrier.cuh"

namespace swa::cuda {

template <class Traits>
class SliceLoader {
  using Slice = typename Traits::Slice;

 public:
  // The maps must be those of the pools' device pages; keys_per_box divides a slice and a page.
  SWA_DEVICE SliceLoader(const KvLoader<Traits>& rows, const AttentionParams& params,
                         int keys_per_box, int kv_head, const ptx::TensorMap& k_map,
                         const ptx::TensorMap& v_map)
      : rows_(rows),
        p_(params),
        k_map_(k_map),
        v_map_(v_map),
        keys_per_box_(keys_per_box),
        kv_head_(kv_head) {}

  // Whether TMA can bring slice `index`.
  SWA_DEVICE bool boxed(int index) const {
    const int first = index * kSliceKeys, end = first + kSliceKeys;
    if (first < rows_.first_key() || end > rows_.end_key()) return false;
    for (int key = first; key < end; key += keys_per_box_)
      if (rows_.page_of(key) >= p_.k.num_device_pages) return false;
    return true;
  }

  // By one thread, a slice that is boxed: completes on `landed`.
  SWA_DEVICE void issue(int index, uint32_t slot, uint32_t landed) const {
    ptx::mbarrier_arrive_expect_tx(
        landed, uint32_t(kSliceKeys * (Slice::kKeyRowBytes + Slice::kValueRowBytes)));
    const int first = index * kSliceKeys;
    for (int key = first; key < first + kSliceKeys; key += keys_per_box_) {
      const int page = rows_.page_of(key), page_slot = key % p_.page_size;
      const uint32_t box = slot + uint32_t((key - first) * Slice::Panel::kRowBytes);
      load_page_box<Slice::kKeyPanels, Slice::kPanelBytes>(box, landed, k_map_, kv_head_, page,
                                                           page_slot);
      load_page_box<Slice::kValuePanels, Slice::kPanelBytes>(
          box + uint32_t(Slice::kValueOffset), landed, v_map_, kv_head_, page, page_slot);
    }
  }

  // By whole warps, one of num_warps each, for a slice that is boxed or not: what TMA does not
  // bring, to be waited for as cp.async's.
  SWA_DEVICE void load_rest(int index, uint32_t slot, uint32_t landed, bool is_boxed, int warp,
                            int num_warps) const {
    if (!is_boxed) {
      rows_.load(index, slot, warp, num_warps);
      if (warp == 0 && ptx::lane_id() == 0) ptx::mbarrier_arrive(landed);
    } else if constexpr (Traits::kFloat8) {
      if (warp == 0) rows_.load_scales(index, slot);
    }
  }

  SWA_DEVICE const KvLoader<Traits>& rows() const { return rows_; }

 private:
  const KvLoader<Traits>& rows_;
  const AttentionParams& p_;
  const ptx::TensorMap &k_map_, &v_map_;
  int keys_per_box_, kv_head_;
};

}  // namespace swa::cuda
