// Prefill for full attention and large windows on Hopper: TMA, wgmma, warp-specialised. K and V
// stream through two rings of shared memory.
//
// Work: a CTA has a KV head and some consecutive tokens of a sequence with all heads of the group,
// 64 rows for each of two consumer warpgroups. The walk starts at the tile of keys that holds the
// first visible one and ends with the last row's own; a consumer leaves out the tiles at either end
// that only the other one sees, and masks only where some row does not see some key. Later tokens,
// which have more keys, are started first, all heads together, so that CTAs that run at the same
// time find each other's keys in L2.
//
//   producer (1 thread)    page ids; TMA of queries, K and V; K one tile ahead of V
//   finishers (3 warps)    host pages; V's rows outside the range (tile_loader.cuh)
//   consumers (2 x 128)    S of the next tile, then O += P V of this one; softmax of the next tile
//                          while the product with V runs
//
// Infinities and NaN in V: as in sm80_prefill, results tell whether there were some, and the work
// is done once more with finishers that remove them (special_values.cuh).
#pragma once
#include "cuda/attention/epilogue.cuh"
#include "cuda/attention/everybody.cuh"
#include "cuda/attention/query_box.cuh"
#include "cuda/attention/special_values.cuh"
#include "cuda/attention/tile_loader.cuh"
#include "cuda/attention/tile_ring.cuh"
#include "cuda/attention/wgmma_attention.cuh"
#include "cuda/attention/work.cuh"
#include "cuda/kernels/tensor_maps.h"
#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/registers.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/sync.cuh"

namespace swa::cuda::sm90_prefill {

constexpr int kConsumers = 2, kFinishers = 3, kThreads = (1 + kConsumers) * 128;

struct Schedule {
  int tokens;  // of a consumer; 0: the kernel does not take the case
  int keys_per_box;
};

// Tiles of 128 keys keep the tensor cores' reads of shared memory below what it gives; for heads of
// 256 there is room for tiles of 64 only, in registers as in shared memory.
template <class Traits>
struct Shape {
  static constexpr int kTileKeys = Traits::kHeadDim < 256 ? 128 : 64;
  static constexpr int kStages = Traits::kHeadDim <= 64 ? 4 : Traits::kHeadDim <= 128 ? 3 : 2;
  using Tile = KvTile<Traits::kHeadDim, Traits::kValueDim, kTileKeys>;
  using KeyRing = TileRing<kStages, Tile::kKeyBytes>;
  using ValueRing = TileRing<kStages, Tile::kValueBytes>;
};

template <class Traits>
struct SharedStorage {
  alignas(1024) uint8_t q[kConsumers][kQueryBytes<Traits>];
  typename Shape<Traits>::KeyRing::Storage keys;
  typename Shape<Traits>::ValueRing::Storage values;
  ptx::U32x4 block;
  uint64_t q_full[kConsumers];
  uint32_t finite[kThreads / 32];  // of each warp, for everybody()
};

// Tiles that somebody walks along.
struct Tiles {
  int first, end;

  SWA_DEVICE int count() const { return end - first; }
};

// What a CTA works on: consecutive tokens of a sequence. Positions are those of the sequence's
// keys.
struct Block {
  int seq;                  // -1: nothing
  int first_row, position;  // of the first token
  int num_tokens;

  SWA_DEVICE int end_key() const { return position + num_tokens; }
};

// CTAs of the same tokens are neighbours; the last tokens come first.
SWA_DEVICE int cta_index() { return int(ptx::grid_dim().x - 1 - ptx::block_idx().x); }
SWA_DEVICE int kv_head_of_cta(const AttentionParams& p) { return cta_index() % p.num_kv_heads; }

SWA_DEVICE Block find_block(const AttentionParams& p, const Schedule& schedule) {
  const QueryRange range =
      find_query_range(p, cta_index() / p.num_kv_heads, kConsumers * schedule.tokens);
  if (range.seq < 0) return {-1, 0, 0, 0};
  const ptx::GlobalPointer<const int32_t> seqlens_k = p.seqlens_k;
  return {range.seq, range.first_row + range.first,
          seqlens_k[range.seq] - range.q_len + range.first, range.end - range.first};
}

// A consumer's tokens, possibly none.
SWA_DEVICE Block part_of(const Block& block, const Schedule& schedule, int consumer) {
  const int first = ptx::min(consumer * schedule.tokens, block.num_tokens);
  return {block.seq, block.first_row + first, block.position + first,
          ptx::min(schedule.tokens, block.num_tokens - first)};
}

SWA_DEVICE int first_key_of(const Block& block, int window) {
  return ptx::max(0, block.position - window + 1);
}

// Tiles with the keys that the block's tokens see.
template <class Traits>
SWA_DEVICE Tiles tiles_of(const Block& block, int window) {
  constexpr int kTileKeys = Shape<Traits>::kTileKeys;
  const int first = first_key_of(block, window) / kTileKeys, end_key = block.end_key();
  return {first, end_key > 0 ? (end_key - 1) / kTileKeys + 1 : first};
}

template <class Traits>
struct Rings {
  typename Shape<Traits>::KeyRing keys;
  typename Shape<Traits>::ValueRing values;
  bool finishes_keys;

  SWA_DEVICE void wait_keys(int use) const {
    keys.wait_landed(use);
    if (finishes_keys) keys.wait_ready(use);
  }
  SWA_DEVICE void wait_values(int use) const {
    values.wait_landed(use);
    values.wait_ready(use);
  }
};

template <class Traits>
SWA_DEVICE void init(const AttentionParams& p, const Schedule& schedule,
                     SharedStorage<Traits>& smem, const Rings<Traits>& rings) {
  if (ptx::warp_id() == 0) {
    const Block block = find_block(p, schedule);
    if (ptx::lane_id() == 0) ptx::sts(ptx::smem_u32(&smem.block), block);
  }
  if (ptx::thread_idx().x == 0) {
    for (uint64_t& mbarrier : smem.q_full) ptx::mbarrier_init(ptx::smem_u32(&mbarrier), 1);
    rings.keys.init(kFinishers, kConsumers * 4);
    rings.values.init(kFinishers, kConsumers * 4);
    ptx::fence_mbarrier_init();
  }
  clear_rows_without_queries<Traits>(smem.q, schedule.tokens * p.group_size);
  ptx::fence_proxy_async();
  ptx::sync_threads();
}

// One thread's work, as produce.
template <class Traits>
SWA_DEVICE void load_queries(const AttentionParams& p, const Schedule& schedule, const Block& block,
                             SharedStorage<Traits>& smem, const ptx::TensorMap& q_map) {
  for (int i = 0; i < kConsumers; ++i) {
    const Block part = part_of(block, schedule, i);
    if (part.num_tokens == 0) continue;
    load_query_box<Traits>(ptx::smem_u32(smem.q[i]), ptx::smem_u32(&smem.q_full[i]), q_map,
                           kv_head_of_cta(p) * p.group_size, part.first_row,
                           schedule.tokens * p.group_size);
  }
}

// Calls keys(i) and values(i) for the tiles of a walk, in the order in which consumers want them.
template <class Keys, class Values>
SWA_DEVICE void in_order(int num_tiles, Keys keys, Values values) {
  for (int i = 0; i <= num_tiles; ++i) {
    if (i < num_tiles) keys(i);
    if (i > 0) values(i - 1);
  }
}

template <class Traits>
using Loader = TileLoader<Traits, Shape<Traits>::kTileKeys>;

// `use`: of the slots, for the first tile.
template <class Traits>
SWA_DEVICE void produce(const Tiles& tiles, int use, const Loader<Traits>& loader,
                        const Rings<Traits>& rings, const ptx::TensorMap& k_map,
                        const ptx::TensorMap& v_map) {
  using Tile = typename Shape<Traits>::Tile;
  in_order(
      tiles.count(),
      [&](int i) {
        rings.keys.wait_empty(use + i);
        loader.template issue_panels<Tile::kKeyPanels>(tiles.first + i, rings.keys.tile(use + i),
                                                       rings.keys.landed(use + i), k_map);
      },
      [&](int i) {
        rings.values.wait_empty(use + i);
        loader.template issue_panels<Tile::kValuePanels>(
            tiles.first + i, rings.values.tile(use + i), rings.values.landed(use + i), v_map);
      });
}

template <class Traits>
SWA_DEVICE void finish(const Tiles& tiles, int use, const Loader<Traits>& loader,
                       const Rings<Traits>& rings, int warp, Values wanted) {
  in_order(
      tiles.count(),
      [&](int i) {
        if (!rings.finishes_keys) return;
        rings.keys.wait_landed(use + i);
        loader.finish_keys(tiles.first + i, rings.keys.tile(use + i), warp, kFinishers);
        rings.keys.set_ready(use + i);
      },
      [&](int i) {
        rings.values.wait_landed(use + i);
        loader.finish_values(tiles.first + i, rings.values.tile(use + i), warp, kFinishers, wanted);
        rings.values.set_ready(use + i);
      });
}

// Where attend_tiles finds a consumer's tiles: in the rings, from use number `use` on.
template <class Traits>
struct RingTiles {
  const Rings<Traits>& rings;
  int use;

  SWA_DEVICE uint32_t keys(int i) const {
    rings.wait_keys(use + i);
    return rings.keys.tile(use + i);
  }
  SWA_DEVICE uint32_t values(int i) const {
    rings.wait_values(use + i);
    return rings.values.tile(use + i);
  }
  SWA_DEVICE void keys_read(int i) const { rings.keys.give_back(use + i); }
  SWA_DEVICE void values_read(int i) const { rings.values.give_back(use + i); }
};

// Gives back the tiles first .. end - 1 of the block unseen.
template <class Traits>
SWA_DEVICE void pass_by(int first, int end, int use, const Rings<Traits>& rings) {
  for (int i = first; i < end; ++i) {
    rings.keys.wait_landed(use + i);  // the slot's use before this one is over
    rings.keys.give_back(use + i);
    rings.values.wait_landed(use + i);
    rings.values.give_back(use + i);
  }
}

SWA_DEVICE WarpRows rows_of(const AttentionParams& p, const Block& part) {
  return warp_rows(ptx::warp_id() % 4 * kWarpRows, part.num_tokens, p.group_size, part.position,
                   p.window);
}

// What is left when all tiles have gone by. Returns false, and nothing is stored, if the work has
// to be done carefully.
template <class Traits>
SWA_DEVICE bool conclude(const AttentionParams& p, const Schedule& schedule,
                         SharedStorage<Traits>& smem, int consumer, bool careful,
                         const SoftmaxState& state, Output<Traits>& out) {
  // Read again, and rows derived again: registers are short while tiles go by.
  const Block block = ptx::lds<Block>(ptx::smem_u32(&smem.block));
  const Block part = part_of(block, schedule, consumer);
  const WarpRows rows = rows_of(p, part);
  const int kv_head = kv_head_of_cta(p), head = kv_head * p.group_size;
  if (careful)
    add_special_values(
        out,
        KvLoader<Traits>(p, block.seq, kv_head, first_key_of(block, p.window), block.end_key()),
        rows);
  else if (!everybody(smem.finite, all_finite<Traits>(out, rows)))
    return false;
  const int64_t row = part.first_row;
  store_results<Traits>(p, rows, head, p.out + row * p.out_token_stride + head * p.out_head_stride,
                        p.lse + row * p.num_kv_heads * p.group_size + head, state, out);
  return true;
}

template <class Traits>
SWA_DEVICE void consume(const AttentionParams& p, const Schedule& schedule,
                        SharedStorage<Traits>& smem, const Rings<Traits>& rings, int consumer) {
  const Block block = ptx::lds<Block>(ptx::smem_u32(&smem.block));
  if (block.seq < 0) return;
  const Block part = part_of(block, schedule, consumer);
  const Tiles all = tiles_of<Traits>(block, p.window);
  const Tiles mine =
      part.num_tokens > 0 ? tiles_of<Traits>(part, p.window) : Tiles{all.end, all.end};
  const WarpRows rows = rows_of(p, part);
  const ScoreScale scale(p);
  SoftmaxState state;
  Output<Traits> out;
  if (part.num_tokens > 0) ptx::mbarrier_wait(ptx::smem_u32(&smem.q_full[consumer]), 0);
  for (bool careful = false;; careful = true) {
    const int use = careful ? all.count() : 0;
    state = SoftmaxState();
    for (float (&columns)[4] : out)
      for (float& x : columns) x = 0.f;
    pass_by(0, mine.first - all.first, use, rings);
    if (mine.count() > 0)
      attend_tiles<Traits, Shape<Traits>::kTileKeys>(
          RingTiles<Traits>{rings, use + mine.first - all.first}, mine.first, mine.count(),
          ptx::smem_u32(smem.q[consumer]), rows, scale, state, out);
    pass_by(mine.end - all.first, all.count(), use, rings);
    if (conclude(p, schedule, smem, consumer, careful, state, out)) return;
  }
}

// The first warpgroup's work.
template <class Traits>
SWA_DEVICE void provide(const AttentionParams& p, const Schedule& schedule,
                        SharedStorage<Traits>& smem, const Rings<Traits>& rings,
                        const ptx::TensorMap& q_map, const ptx::TensorMap& k_map,
                        const ptx::TensorMap& v_map) {
  const Block block = ptx::lds<Block>(ptx::smem_u32(&smem.block));
  if (block.seq < 0) return;
  const Tiles tiles = tiles_of<Traits>(block, p.window);
  const Loader<Traits> loader(p, schedule.keys_per_box, block.seq, kv_head_of_cta(p),
                              first_key_of(block, p.window), block.end_key());
  const int warp = ptx::warp_id();
  const bool issues = warp == 0 && ptx::elect_one();
  if (issues) load_queries(p, schedule, block, smem, q_map);
  for (bool careful = false;; careful = true) {
    const int use = careful ? tiles.count() : 0;
    if (issues) produce(tiles, use, loader, rings, k_map, v_map);
    if (warp > 0)
      finish(tiles, use, loader, rings, warp - 1, careful ? Values::kFinite : Values::kAsTheyAre);
    ptx::sync_warp();
    if (careful || everybody(smem.finite, true)) return;
  }
}

template <class Traits>
__global__ void __launch_bounds__(kThreads, 1)
    kernel(const __grid_constant__ ptx::TensorMap q_map,
           const __grid_constant__ ptx::TensorMap k_map,
           const __grid_constant__ ptx::TensorMap v_map, const __grid_constant__ AttentionParams p,
           const __grid_constant__ Schedule schedule) {
#if SWA_EMULATED || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  auto& smem = ptx::shared_storage<SharedStorage<Traits>>();
  const Rings<Traits> rings{typename Shape<Traits>::KeyRing(smem.keys),
                            typename Shape<Traits>::ValueRing(smem.values), p.k.num_host_pages > 0};
  init(p, schedule, smem, rings);
  const int warpgroup = ptx::warp_id() / 4;
  if (warpgroup == 0) {
    ptx::set_max_registers_down<56>();
    provide(p, schedule, smem, rings, q_map, k_map, v_map);
  } else {
    ptx::set_max_registers_up<224>();
    consume(p, schedule, smem, rings, warpgroup - 1);
  }
#endif
}

// Which cases it is compiled for.
template <class Traits>
constexpr bool kCompiled = !Traits::kFloat8;

template <class Traits>
Schedule schedule_for(const AttentionParams& p, const Device& device) {
  if (device.compute_capability / 10 != 9 || p.group_size > kWarpgroupRows || !mappable(p) ||
      !(p.softmax_scale > 0.f) || sizeof(SharedStorage<Traits>) > size_t(device.max_smem_bytes))
    return {};
  return {kWarpgroupRows / p.group_size, keys_per_box(p.page_size)};
}

template <class Traits>
ptx::Error launch(const AttentionParams& p, const Schedule& schedule, ptx::Stream stream) {
  const int ranges = max_query_ranges(p.total_q, p.num_seqs, kConsumers * schedule.tokens);
  const ptx::TensorMap queries = map_queries(p, schedule.tokens);
  const bool on_host = p.k.num_device_pages == 0;  // then the maps of pages are not used
  return ptx::launch({ptx::Dim3(unsigned(ranges) * unsigned(p.num_kv_heads)), kThreads,
                      sizeof(SharedStorage<Traits>), 1, stream},
                     kernel<Traits>, queries,
                     on_host ? queries : map_pages(p, p.k, p.head_dim, schedule.keys_per_box),
                     on_host ? queries : map_pages(p, p.v, p.v_head_dim, schedule.keys_per_box), p,
                     schedule);
}

}  // namespace swa::cuda::sm90_prefill
