// Tiles of a sequence's keys and values from their pages to shared memory, in two steps: TMA brings
// what is on device pages; then some warps finish the tile.
//
// Finishing: rows from host pages are copied, with the threads' own loads; V's rows outside the
// range and V's infinities and NaN become 0, since 0 x NaN would reach the rows that do not see
// them (special_values.cuh adds them to those that do). A tile is looked at once for all the
// queries that use it.
#pragma once
#include "cuda/attention/chunk.cuh"
#include "cuda/attention/kv_loader.cuh"
#include "cuda/attention/page_pool.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/tile/kv_tile.cuh"

namespace swa::cuda {

template <class Traits>
class TileLoader {
 public:
  using Tile = KvTile<Traits::kHeadDim, Traits::kValueDim>;

  // Keys outside first_key .. end_key - 1 are not looked up in the block table.
  SWA_DEVICE TileLoader(const AttentionParams& params, int keys_per_box, int seq, int kv_head,
                        int first_key, int end_key)
      : p_(params),
        table_(params.block_table + seq * params.block_table_stride),
        keys_per_box_(keys_per_box),
        kv_head_(kv_head),
        first_key_(first_key),
        end_key_(end_key) {}

  // By one thread: arrives on `landed`, on which the bytes complete.
  SWA_DEVICE void issue(int index, uint32_t tile, uint32_t landed, const ptx::TensorMap& k_map,
                        const ptx::TensorMap& v_map) const {
    const int first = index * Tile::kKeys;
    uint32_t bytes = 0;
    for (int key = first; key < first + Tile::kKeys; key += keys_per_box_)
      if (!on_host(page_of_box(key)))
        bytes += uint32_t(Tile::kPanels * keys_per_box_ * kPanelRowBytes);
    ptx::mbarrier_arrive_expect_tx(landed, bytes);
    for (int key = first; key < first + Tile::kKeys; key += keys_per_box_) {
      const int page = page_of_box(key), slot = key % p_.page_size;
      if (on_host(page)) continue;
      const uint32_t dst = tile + uint32_t((key - first) * kPanelRowBytes);
      SWA_UNROLL
      for (int i = 0; i < Tile::kKeyPanels; ++i)
        ptx::tma_load_4d(dst + uint32_t(i * Tile::kPanelBytes), &k_map, landed, i * kPanelElements,
                         kv_head_, slot, page);
      SWA_UNROLL
      for (int i = 0; i < Tile::kValuePanels; ++i)
        ptx::tma_load_4d(dst + uint32_t(Tile::kValueOffset + i * Tile::kPanelBytes), &v_map, landed,
                         i * kPanelElements, kv_head_, slot, page);
    }
  }

  // After `landed`, by warp `warp` of num_warps: its share. Returns whether V had an infinity or
  // NaN there. The warp's lanes have fenced their writes when this returns.
  SWA_DEVICE bool finish(int index, uint32_t tile, int warp, int num_warps) const {
    if (p_.k.num_host_pages > 0) copy_host_rows(index, tile, warp, num_warps);
    const int first = index * Tile::kKeys;
    constexpr int kChunks = Traits::kValueDim / 8;
    bool special = false, cleared = false;
    for (int c = warp * 32 + ptx::lane_id(); c < Tile::kKeys * kChunks; c += num_warps * 32) {
      const int row = c / kChunks, chunk = c % kChunks;
      const uint32_t address =
          tile + uint32_t(Tile::kValueOffset) + panel_offset(Tile::kKeys, row, chunk);
      const ptx::U32x4 x = ptx::lds<ptx::U32x4>(address);
      const bool is_valid = valid(first + row);
      const ptx::U32x4 clean = is_valid ? finite(x) : ptx::U32x4{0, 0, 0, 0};
      const bool differs = x.x != clean.x || x.y != clean.y || x.z != clean.z || x.w != clean.w;
      if (differs) ptx::sts(address, clean);
      special = special || (differs && is_valid);
      cleared = cleared || differs;
    }
    if (cleared) ptx::fence_proxy_async();
    return ptx::any(special);
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

  SWA_DEVICE static ptx::U32x4 finite(const ptx::U32x4& x) {
    using Loader = KvLoader<Traits>;
    return {Loader::finite(x.x), Loader::finite(x.y), Loader::finite(x.z), Loader::finite(x.w)};
  }

  SWA_DEVICE void copy_host_rows(int index, uint32_t tile, int warp, int num_warps) const {
    const int first = index * Tile::kKeys;
    constexpr int kChunks = (Traits::kHeadDim + Traits::kValueDim) / 8;
    const bool aligned = aligned_16(p_.k) && aligned_16(p_.v);
    for (int row = warp; row < Tile::kKeys; row += num_warps) {
      const int key = first + row;
      const int page = page_of_box(key / keys_per_box_ * keys_per_box_);
      if (!on_host(page)) continue;
      const bool is_valid = valid(key);
      SWA_NO_UNROLL
      for (int chunk = ptx::lane_id(); chunk < kChunks; chunk += 32) {
        const bool is_value = chunk >= Traits::kHeadDim / 8;
        const PagePool& pool = is_value ? p_.v : p_.k;
        const int in_row = is_value ? chunk - Traits::kHeadDim / 8 : chunk;
        const char* src = slot_address(pool, page - 1, key % p_.page_size, kv_head_) + in_row * 16;
        copy_chunk(tile + panel_offset(Tile::kKeys, row, chunk), src, is_valid, aligned);
      }
    }
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
