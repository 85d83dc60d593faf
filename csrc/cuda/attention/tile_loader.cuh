// Tiles of a sequence's keys and values from their pages to shared memory, in two steps: TMA brings
// what is on device pages; then some warps finish the tile.
//
// Finishing: rows from host pages are copied, with the threads' own loads; V's rows outside the
// range become 0, since 0 x NaN would reach the rows that do not see them. So do V's infinities and
// NaN where the caller asks for it (special_values.cuh adds them to the rows that see them). A tile
// is looked at once for all the queries that use it.
#pragma once
#include "cuda/attention/chunk.cuh"
#include "cuda/attention/kv_loader.cuh"
#include "cuda/attention/page_box.cuh"
#include "cuda/attention/page_pool.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/shuffle.cuh"
#include "cuda/ptx/sync.cuh"
#include "cuda/tile/kv_tile.cuh"

namespace swa::cuda {

enum class Values { kAsTheyAre, kFinite };  // what finishing makes of V inside the range

template <class Traits, int kTileKeys = 64>
class TileLoader {
 public:
  using Tile = KvTile<Traits::kHeadDim, Traits::kValueDim, kTileKeys>;

  // Keys outside first_key .. end_key - 1 are not looked up in the block table.
  SWA_DEVICE TileLoader(const AttentionParams& params, int keys_per_box, int seq, int kv_head,
                        int first_key, int end_key)
      : p_(params),
        table_(params.block_table + seq * params.block_table_stride),
        keys_per_box_(keys_per_box),
        kv_head_(kv_head),
        first_key_(first_key),
        end_key_(end_key) {}

  // By one thread: arrives on `landed`, on which the bytes of all panels complete.
  SWA_DEVICE void issue(int index, uint32_t tile, uint32_t landed, const ptx::TensorMap& k_map,
                        const ptx::TensorMap& v_map) const {
    ptx::mbarrier_arrive_expect_tx(landed, bytes_to_land(index, Tile::kPanels));
    for_device_boxes(index, [&](int page, int slot, uint32_t offset) {
      load_page_box<Tile::kKeyPanels, Tile::kPanelBytes>(tile + offset, landed, k_map, kv_head_,
                                                         page, slot);
      load_page_box<Tile::kValuePanels, Tile::kPanelBytes>(
          tile + uint32_t(Tile::kValueOffset) + offset, landed, v_map, kv_head_, page, slot);
    });
  }

  // The same for K or V alone, whose panels start at `panels`.
  template <int kPanels>
  SWA_DEVICE void issue_panels(int index, uint32_t panels, uint32_t landed,
                               const ptx::TensorMap& map) const {
    ptx::mbarrier_arrive_expect_tx(landed, bytes_to_land(index, kPanels));
    for_device_boxes(index, [&](int page, int slot, uint32_t offset) {
      load_page_box<kPanels, Tile::kPanelBytes>(panels + offset, landed, map, kv_head_, page, slot);
    });
  }

  // After `landed`, by warp `warp` of num_warps: its share. Returns whether V had an infinity or
  // NaN there. The warp's lanes have fenced their writes when this returns.
  SWA_DEVICE bool finish(int index, uint32_t tile, int warp, int num_warps) const {
    const uint32_t values = tile + uint32_t(Tile::kValueOffset);
    if (has_host_pages()) {
      copy_host_rows<Traits::kHeadDim>(p_.k, index, tile, warp, num_warps);
      copy_host_rows<Traits::kValueDim>(p_.v, index, values, warp, num_warps);
      wait_for_host_rows(num_warps);
    }
    return clean_values(index, values, warp, num_warps, Values::kFinite);
  }

  // The same for K or V alone. Without host pages there is nothing to finish about K.
  SWA_DEVICE bool has_host_pages() const { return p_.k.num_host_pages > 0; }
  SWA_DEVICE void finish_keys(int index, uint32_t keys, int warp, int num_warps) const {
    copy_host_rows<Traits::kHeadDim>(p_.k, index, keys, warp, num_warps);
    wait_for_host_rows(num_warps);
  }
  SWA_DEVICE void finish_values(int index, uint32_t values, int warp, int num_warps,
                                Values wanted) const {
    if (has_host_pages()) {
      copy_host_rows<Traits::kValueDim>(p_.v, index, values, warp, num_warps);
      wait_for_host_rows(num_warps);
    }
    const int first = index * Tile::kKeys;
    const bool inside = first >= first_key_ && first + Tile::kKeys <= end_key_;
    if (!inside || wanted == Values::kFinite) clean_values(index, values, warp, num_warps, wanted);
  }

 private:
  SWA_DEVICE bool valid(int key) const { return key >= first_key_ && key < end_key_; }
  SWA_DEVICE bool on_host(int page) const { return page > p_.k.num_device_pages; }

  // The page of a box, host pages counted from one beyond num_device_pages: the page of that number
  // is outside the tensor and gives zeros, which stand in for a box without a key of the range. No
  // device pages: no tensor, so such a box counts as one of the host, whose copies give zeros, too.
  SWA_DEVICE int page_of_box(int key) const {
    if (key + keys_per_box_ <= first_key_ || key >= end_key_)
      return p_.k.num_device_pages > 0 ? p_.k.num_device_pages : 1;
    const int page = table_[key / p_.page_size];
    return page < p_.k.num_device_pages ? page : page + 1;
  }

  // f(page, slot, offset of the box in a panel)
  template <class F>
  SWA_DEVICE void for_device_boxes(int index, F f) const {
    const int first = index * Tile::kKeys;
    for (int key = first; key < first + Tile::kKeys; key += keys_per_box_) {
      const int page = page_of_box(key);
      if (!on_host(page)) f(page, key % p_.page_size, uint32_t((key - first) * kPanelRowBytes));
    }
  }

  SWA_DEVICE uint32_t bytes_to_land(int index, int panels) const {
    uint32_t bytes = 0;
    for_device_boxes(index, [&](int, int, uint32_t) {
      bytes += uint32_t(panels * keys_per_box_ * kPanelRowBytes);
    });
    return bytes;
  }

  SWA_DEVICE static ptx::U32x4 finite(const ptx::U32x4& x) {
    using Loader = KvLoader<Traits>;
    return {Loader::finite(x.x), Loader::finite(x.y), Loader::finite(x.z), Loader::finite(x.w)};
  }

  // Returns whether a value inside the range was changed.
  SWA_DEVICE bool clean_values(int index, uint32_t values, int warp, int num_warps,
                               Values wanted) const {
    const int first = index * Tile::kKeys;
    constexpr int kChunks = Traits::kValueDim / 8;
    bool special = false, cleared = false;
    for (int c = warp * 32 + ptx::lane_id(); c < Tile::kKeys * kChunks; c += num_warps * 32) {
      const int row = c / kChunks, chunk = c % kChunks;
      const uint32_t address = values + panel_offset(Tile::kKeys, row, chunk);
      const ptx::U32x4 x = ptx::lds<ptx::U32x4>(address);
      const bool is_valid = valid(first + row);
      ptx::U32x4 clean = x;
      if (wanted == Values::kFinite) clean = finite(x);
      if (!is_valid) clean = ptx::U32x4{0, 0, 0, 0};
      const bool differs = x.x != clean.x || x.y != clean.y || x.z != clean.z || x.w != clean.w;
      if (differs) ptx::sts(address, clean);
      special = special || (differs && is_valid);
      cleared = cleared || differs;
    }
    if (cleared) ptx::fence_proxy_async();
    return ptx::any(special);
  }

  template <int kDim>
  SWA_DEVICE void copy_host_rows(const PagePool& pool, int index, uint32_t panels, int warp,
                                 int num_warps) const {
    const int first = index * Tile::kKeys;
    const bool aligned = aligned_16(pool);
    for (int row = warp; row < Tile::kKeys; row += num_warps) {
      const int key = first + row;
      const int page = page_of_box(key / keys_per_box_ * keys_per_box_);
      if (!on_host(page)) continue;
      const bool is_valid = valid(key);
      const char* src = slot_address(pool, page - 1, key % p_.page_size, kv_head_);
      SWA_NO_UNROLL
      for (int chunk = ptx::lane_id(); chunk < kDim / 8; chunk += 32)
        copy_chunk(panels + panel_offset(Tile::kKeys, row, chunk), src + chunk * 16, is_valid,
                   aligned);
    }
  }

  SWA_DEVICE static void wait_for_host_rows(int num_warps) {
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    ptx::fence_proxy_async();
    ptx::barrier_sync(kFinishersBarrier, num_warps * 32);  // V is looked at by other lanes
  }

  static constexpr int kFinishersBarrier = 1;

  const AttentionParams& p_;
  ptx::GlobalPointer<const int32_t> table_;
  int keys_per_box_, kv_head_, first_key_, end_key_;
};

}  // namespace swa::cuda
