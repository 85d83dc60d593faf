// Prefill for small windows on Hopper: TMA, wgmma, warp-specialised. A CTA walks along a segment of
// one sequence and KV head with the window in a ring of shared memory.
//
// Work: a step is a block of positions, at a multiple of its size, for two consumer warpgroups of
// 64 rows each: tokens_per_group tokens with all heads of their group. The size is a power of two,
// so that what a warpgroup sees touches few tiles of 64 keys. For windows up to kOnePassWindow its
// whole row of scores is one accumulator: one pass of softmax, nothing to rescale
// (window_products.cuh). Wider ones go tile by tile.
//
//   producer (1 thread)    page ids; TMA of tiles and queries; one tile ahead where there is room
//   finishers (3 warps)    host pages; clean values (tile_loader.cuh)
//   consumers (2 x 128)    S = Q K^T, softmax, O = P V; O by TMA where a warp's rows are all there
//
// Barriers of a ring slot: `landed` (TMA's bytes), `ready` (finished), `empty` (8 consumer warps).
// A consumer gives a tile back after the last step in which it might see a key of it, whether it
// ever looked at it or not; never before it has the queries of a step whose tiles are all issued,
// so that arrivals of two uses of a slot do not meet in one phase.
#pragma once
#include "cuda/attention/epilogue.cuh"
#include "cuda/attention/output_box.cuh"
#include "cuda/attention/query_box.cuh"
#include "cuda/attention/special_values.cuh"
#include "cuda/attention/tile_loader.cuh"
#include "cuda/attention/wgmma_attention.cuh"
#include "cuda/attention/window_products.cuh"
#include "cuda/attention/work.cuh"
#include "cuda/kernels/tensor_maps.h"
#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/registers.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/sync.cuh"

namespace swa::cuda::sm90_swa_prefill {

constexpr int kConsumers = 2, kFinishers = 3, kThreads = (1 + kConsumers) * 128;
constexpr int kTileKeys = kWindowTileKeys;
constexpr int kMaxSlots = 8;

constexpr int kMaxWindow = 257;

// Slots of the ring. A window of 128 has 3 tiles in sight, one of 193 has 4, one of 257 has 5; what
// is more than that is on its way under a step's work.
struct Tiling {
  int head_dim, v_head_dim, max_slots;
};

// KB of shared memory, of 227: queries of two consumers + outputs on their way + slots x a tile.
constexpr Tiling kTilings[] = {
    {64, 64, 8},    // 16 + 16 + 8 x 16 = 160: enough
    {128, 128, 5},  // 32 + 16 + 5 x 32 = 208
    {192, 128, 4},  // 48 + 16 + 4 x 40 = 224
};  // 256 / 256: 64 + 16 + 2 x 64 would be windows up to 65, which no model has

constexpr Tiling find_tiling(int head_dim, int v_head_dim) {
  for (const Tiling& t : kTilings)
    if (t.head_dim == head_dim && t.v_head_dim == v_head_dim) return t;
  return {};
}
template <class Traits>
constexpr Tiling kTiling = find_tiling(Traits::kHeadDim, Traits::kValueDim);

struct Schedule {
  int tokens_shift;  // log2 of the tokens of a consumer's step
  int tokens_per_segment, num_slots, num_ahead, keys_per_box;
  bool stores_boxes;  // of outputs, by TMA
};

template <class Traits>
struct SharedStorage {
  uint64_t q_full[kConsumers], q_empty[kConsumers];
  uint64_t landed[kMaxSlots], ready[kMaxSlots], empty[kMaxSlots];
  uint32_t special[kMaxSlots][kFinishers];  // V had an infinity or NaN
  ptx::U32x4 segment;
  alignas(1024) uint8_t q[kConsumers][kQueryBytes<Traits>];
  alignas(1024) uint8_t out[kConsumers * 4][kOutputPanelBytes];
  alignas(1024) uint8_t ring[1024];  // num_slots tiles; how many is known at launch
};

// What a CTA works on: consecutive tokens of a sequence.
struct Segment {
  int seq;         // -1: nothing
  int row;         // of q, for position 0 of the sequence
  int first, end;  // positions of the tokens; below 0 for queries that see no key
};

SWA_DEVICE Segment find_segment(const AttentionParams& p, const Schedule& schedule) {
  const QueryRange range =
      find_query_range(p, int(ptx::block_idx().x), schedule.tokens_per_segment);
  if (range.seq < 0) return {-1, 0, 0, 0};
  const ptx::GlobalPointer<const int32_t> seqlens_k = p.seqlens_k;
  const int first_position = seqlens_k[range.seq] - range.q_len;
  return {range.seq, range.first_row - first_position, first_position + range.first,
          first_position + range.end};
}

SWA_DEVICE int kv_head_of_cta() { return int(ptx::block_idx().y); }

SWA_DEVICE int first_tile_for(int position, int window) {
  return first_key_for(position, window) / kTileKeys;
}

// Tiles that tokens at positions first .. end - 1 see; last < first: none.
struct Tiles {
  int first, last;
};

SWA_DEVICE Tiles tiles_of(int first, int end, int window) {
  const int first_tile = first_tile_for(first, window);
  return {first_tile, end > ptx::max(0, first) ? (end - 1) / kTileKeys : first_tile - 1};
}

// Tiles `index` of a segment in their slots.
template <class Traits>
struct RingView {
  SharedStorage<Traits>& smem;
  int num_slots;
  int first_tile;  // of the segment

  SWA_DEVICE int slot(int tile) const { return (tile - first_tile) % num_slots; }
  SWA_DEVICE uint32_t parity(int tile) const {
    return uint32_t((tile - first_tile) / num_slots & 1);
  }
  SWA_DEVICE uint32_t address(int tile) const {
    using Tile = KvTile<Traits::kHeadDim, Traits::kValueDim>;
    return ptx::smem_u32(smem.ring) + uint32_t(slot(tile) * Tile::kBytes);
  }
  SWA_DEVICE uint32_t landed(int tile) const { return ptx::smem_u32(&smem.landed[slot(tile)]); }
  SWA_DEVICE uint32_t ready(int tile) const { return ptx::smem_u32(&smem.ready[slot(tile)]); }
  SWA_DEVICE uint32_t empty(int tile) const { return ptx::smem_u32(&smem.empty[slot(tile)]); }
};

template <class Traits>
SWA_DEVICE void init(const AttentionParams& p, const Schedule& schedule,
                     SharedStorage<Traits>& smem) {
  if (ptx::warp_id() == 0) {
    const Segment segment = find_segment(p, schedule);
    if (ptx::lane_id() == 0) ptx::sts(ptx::smem_u32(&smem.segment), segment);
  }
  if (ptx::thread_idx().x == 0) {
    for (int i = 0; i < kConsumers; ++i) {
      ptx::mbarrier_init(ptx::smem_u32(&smem.q_full[i]), 1);
      ptx::mbarrier_init(ptx::smem_u32(&smem.q_empty[i]), 4);
    }
    for (int i = 0; i < kMaxSlots; ++i) {
      ptx::mbarrier_init(ptx::smem_u32(&smem.landed[i]), 1);
      ptx::mbarrier_init(ptx::smem_u32(&smem.ready[i]), kFinishers);
      ptx::mbarrier_init(ptx::smem_u32(&smem.empty[i]), kConsumers * 4);
    }
    ptx::fence_mbarrier_init();
  }
  clear_rows_without_queries<Traits>(smem.q, p.group_size << schedule.tokens_shift);
  ptx::fence_proxy_async();
  ptx::sync_threads();
}

// One thread's work.
template <class Traits>
SWA_DEVICE void produce(const AttentionParams& p, const Schedule& schedule, const Segment& segment,
                        const Tiles& tiles, const TileLoader<Traits>& loader,
                        const RingView<Traits>& ring, const ptx::TensorMap& q_map,
                        const ptx::TensorMap& k_map, const ptx::TensorMap& v_map) {
  const int tokens = 1 << schedule.tokens_shift, step = kConsumers * tokens;
  int next_tile = tiles.first;
  const auto issue_up_to = [&](int tile) {
    for (; next_tile <= ptx::min(tile, tiles.last); ++next_tile) {
      ptx::mbarrier_wait(ring.empty(next_tile), ring.parity(next_tile) ^ 1);
      loader.issue(next_tile, ring.address(next_tile), ring.landed(next_tile), k_map, v_map);
    }
  };
  uint32_t parity = 1;
  for (int position = segment.first & -step; position < segment.end;
       position += step, parity ^= 1) {
    const int last_tile = position + step > 0 ? (position + step - 1) / kTileKeys : tiles.first - 1;
    issue_up_to(last_tile);
    for (int i = 0; i < kConsumers; ++i) {
      ptx::mbarrier_wait(ptx::smem_u32(&ring.smem.q_empty[i]), parity);
      load_query_box<Traits>(ptx::smem_u32(ring.smem.q[i]), ptx::smem_u32(&ring.smem.q_full[i]),
                             q_map, kv_head_of_cta() * p.group_size,
                             segment.row + position + i * tokens, tokens * p.group_size);
    }
    issue_up_to(last_tile + schedule.num_ahead);
  }
}

template <class Traits>
SWA_DEVICE void finish(const Tiles& tiles, const TileLoader<Traits>& loader,
                       const RingView<Traits>& ring, int warp) {
  for (int tile = tiles.first; tile <= tiles.last; ++tile) {
    ptx::mbarrier_wait(ring.landed(tile), ring.parity(tile));
    const bool special = loader.finish(tile, ring.address(tile), warp, kFinishers);
    ptx::sync_warp();
    if (ptx::lane_id() == 0) {
      const ptx::SharedPointer<uint32_t> flags = ring.smem.special[ring.slot(tile)];
      flags[warp] = special;
      ptx::mbarrier_arrive(ring.ready(tile));
    }
  }
}

template <class Traits>
SWA_DEVICE bool has_special_values(const RingView<Traits>& ring, int first_tile, int last_tile) {
  uint32_t any = 0;
  for (int tile = first_tile; tile <= last_tile; ++tile) {
    const ptx::SharedPointer<uint32_t> flags = ring.smem.special[ring.slot(tile)];
    for (int i = 0; i < kFinishers; ++i) any |= flags[i];
  }
  return any != 0;
}

// A consumer's rows of a step, all keys at once.
template <class Traits, class Products, class QueriesRead>
SWA_DEVICE void attend(const RingView<Traits>& ring, uint32_t queries, int first_tile,
                       const WarpRows& rows, const ScoreScale& scale, QueriesRead queries_read,
                       SoftmaxState& state, Output<Traits>& out) {
  constexpr int kFirst = Products::kFirst, kKeys = Products::kCount * kSliceKeys;
  using Tile = KvTile<Traits::kHeadDim, Traits::kValueDim>;
  const auto keys_at = [&](int i) { return ring.address(first_tile + i); };
  const auto values_at = [&](int i) { return keys_at(i) + uint32_t(Tile::kValueOffset); };
  KeyScores<kKeys> s;
  ptx::claim_registers(s);
  start_scores<Traits, kTileKeys, kFirst>(s, queries, keys_at);
  ptx::wgmma_wait<0>(s);
  queries_read();
  float factor = scale.scale;
  if constexpr (Products::kMayBeCapped) factor = apply_softcap(s, scale);
  KeyProbabilities<kKeys> probabilities;
  whole_softmax<Traits, Products::kUnseen, kKeys>(
      probabilities, s, first_tile * kTileKeys + kFirst * kSliceKeys, rows, factor, state);
  ptx::claim_registers(flat<Traits>(out));
  start_values<Traits, kTileKeys, kFirst>(out, probabilities, values_at, false);
  ptx::wgmma_wait<0>(flat<Traits>(out));
}

// Where attend_tiles finds a step's tiles, which are all there.
template <class Traits, class QueriesRead>
struct StepTiles {
  const RingView<Traits>& ring;
  int first, last;
  QueriesRead queries_read;

  SWA_DEVICE uint32_t keys(int i) const { return ring.address(first + i); }
  SWA_DEVICE uint32_t values(int i) const {
    using Tile = KvTile<Traits::kHeadDim, Traits::kValueDim>;
    return ring.address(first + i) + uint32_t(Tile::kValueOffset);
  }
  SWA_DEVICE void keys_read(int i) const {
    if (first + i == last) queries_read();
  }
  SWA_DEVICE void values_read(int) const {}
};

// A consumer's rows of a step: what the segment has of the tokens from `position` on.
SWA_DEVICE WarpRows rows_of(const AttentionParams& p, const Segment& segment, int position,
                            int tokens) {
  WarpRows rows =
      warp_rows(ptx::warp_id() % 4 * kWarpRows, ptx::min(tokens, segment.end - position),
                p.group_size, position, p.window);
  for (int r = 0; r < 2; ++r) {
    if (position + rows.token[r] >= segment.first) continue;
    rows.exists[r] = false;
    rows.position[r] = -1;
  }
  return rows;
}

// One of the two groups of warps that multiply.
template <class Traits>
class Consumer {
 public:
  SWA_DEVICE Consumer(const AttentionParams& params, const Schedule& schedule,
                      SharedStorage<Traits>& smem, int index)
      : p_(params), schedule_(schedule), smem_(smem), index_(index) {}

  SWA_DEVICE void run(const ptx::TensorMap& out_map) const {
    const Segment segment = load_segment();
    int held_tile = first_tile_for(segment.first, p_.window);  // that has not been given back
    uint32_t parity = 0;
    for (int first = segment.first & -step(); first < segment.end; first += step(), parity ^= 1) {
      SoftmaxState state;
      Output<Traits> out;
      attend_step(first + index_ * tokens(), parity, state, out);
      held_tile = give_back(held_tile, first);
      store(first + index_ * tokens(), out_map, state, out);
    }
    wait_for_output_panel();
  }

 private:
  // Of a step.
  SWA_DEVICE int tokens() const { return 1 << schedule_.tokens_shift; }
  SWA_DEVICE int step() const { return kConsumers * tokens(); }

  // Read again in every part of a step: registers are short while it multiplies.
  SWA_DEVICE Segment load_segment() const {
    return ptx::lds<Segment>(ptx::smem_u32(&smem_.segment));
  }
  SWA_DEVICE RingView<Traits> ring_of(const Segment& segment) const {
    return {smem_, schedule_.num_slots, first_tile_for(segment.first, p_.window)};
  }

  // By a whole warp.
  SWA_DEVICE static void arrive(uint32_t mbarrier) {
    ptx::sync_warp();
    if (ptx::lane_id() == 0) ptx::mbarrier_arrive(mbarrier);
  }

  SWA_DEVICE void attend_step(int position, uint32_t parity, SoftmaxState& state,
                              Output<Traits>& out) const {
    const Segment segment = load_segment();
    const RingView<Traits> ring = ring_of(segment);
    // Of all 64 rows, so that the warpgroup agrees.
    const int first = ptx::max(position, segment.first);
    const int end = ptx::min(position + tokens(), segment.end);
    const Tiles tiles = tiles_of(first, end, p_.window);
    for (int tile = tiles.first; tile <= tiles.last; ++tile) {
      ptx::mbarrier_wait(ring.landed(tile), ring.parity(tile));
      ptx::mbarrier_wait(ring.ready(tile), ring.parity(tile));
    }
    ptx::mbarrier_wait(ptx::smem_u32(&smem_.q_full[index_]), parity);
    const auto queries_read = [&] { arrive(ptx::smem_u32(&smem_.q_empty[index_])); };
    if (tiles.last < tiles.first || p_.window > kOnePassWindow)
      for (float& x : flat<Traits>(out)) x = 0.f;
    if (tiles.last < tiles.first) return queries_read();
    const ScoreScale scale(p_);
    const WarpRows rows = rows_of(p_, segment, position, tokens());
    const uint32_t queries = ptx::smem_u32(smem_.q[index_]);
    if (p_.window > kOnePassWindow)
      attend_tiles<Traits, kTileKeys>(
          StepTiles<Traits, decltype(queries_read)>{ring, tiles.first, tiles.last, queries_read},
          tiles.first, tiles.last - tiles.first + 1, queries, rows, scale, state, out);
    else
      choose_products(slices_of(first, end - 1, p_.window), scale.softcap <= 0.f,
                      [&](auto products) {
                        attend<Traits, decltype(products)>(ring, queries, tiles.first, rows, scale,
                                                           queries_read, state, out);
                      });
    if (has_special_values(ring, tiles.first, tiles.last)) add_special(position, out);
  }

  SWA_DEVICE void add_special(int position, Output<Traits>& out) const {
    const Segment segment = load_segment();
    add_special_values(out,
                       KvLoader<Traits>(p_, segment.seq, kv_head_of_cta(),
                                        first_key_for(segment.first, p_.window), segment.end),
                       rows_of(p_, segment, position, tokens()));
  }

  // Tiles from held_tile on that no step after the one from position `first` on might see. Returns
  // the first that is kept.
  SWA_DEVICE int give_back(int held_tile, int first) const {
    const Segment segment = load_segment();
    const RingView<Traits> ring = ring_of(segment);
    const Tiles all = tiles_of(segment.first, segment.end, p_.window);
    const int issued_tile = (first + step() - 1) / kTileKeys;
    const int next = ptx::min(first_tile_for(first + (kConsumers + index_) * tokens(), p_.window),
                              ptx::min(issued_tile, all.last) + 1);
    for (; held_tile < next; ++held_tile) arrive(ring.empty(held_tile));
    return held_tile;
  }

  // Results of the tokens from `position` on. A box would overwrite rows that other segments and
  // sequences have, so it takes all of the warp's rows to be there.
  SWA_DEVICE void store(int position, const ptx::TensorMap& out_map, const SoftmaxState& state,
                        const Output<Traits>& out) const {
    const Segment segment = load_segment();
    const WarpRows rows = rows_of(p_, segment, position, tokens());
    const int head = kv_head_of_cta() * p_.group_size, row = segment.row + position;
    float* lse = p_.lse + int64_t(row) * p_.num_kv_heads * p_.group_size + head;
    const float factor[2] = {finish_row(p_, rows, 0, head, lse, state),
                             finish_row(p_, rows, 1, head, lse, state)};
    if (schedule_.stores_boxes && ptx::all(rows.exists[0] && rows.exists[1])) {
      const int first_row = ptx::warp_id() % 4 * kWarpRows, token = first_row / p_.group_size;
      store_box<Traits>(out_map, ptx::smem_u32(smem_.out[ptx::warp_id() - 4]),
                        head + first_row % p_.group_size, row + token, factor, out);
    } else {
      char* first_out = p_.out + row * p_.out_token_stride + head * p_.out_head_stride;
      for (int r = 0; r < 2; ++r) store_row<Traits>(p_, rows, r, first_out, factor[r], out);
    }
  }

  const AttentionParams& p_;
  const Schedule& schedule_;
  SharedStorage<Traits>& smem_;
  int index_;
};

// The first warpgroup's work.
template <class Traits>
SWA_DEVICE void provide(const AttentionParams& p, const Schedule& schedule,
                        SharedStorage<Traits>& smem, const ptx::TensorMap& q_map,
                        const ptx::TensorMap& k_map, const ptx::TensorMap& v_map) {
  const Segment segment = ptx::lds<Segment>(ptx::smem_u32(&smem.segment));
  const Tiles tiles = tiles_of(segment.first, segment.end, p.window);
  const RingView<Traits> ring{smem, schedule.num_slots, tiles.first};
  const TileLoader<Traits> loader(p, schedule.keys_per_box, segment.seq, kv_head_of_cta(),
                                  first_key_for(segment.first, p.window), segment.end);
  if (ptx::warp_id() > 0)
    finish(tiles, loader, ring, ptx::warp_id() - 1);
  else if (ptx::elect_one())
    produce(p, schedule, segment, tiles, loader, ring, q_map, k_map, v_map);
}

template <class Traits>
__global__ void __launch_bounds__(kThreads, 1)
    kernel(const __grid_constant__ ptx::TensorMap q_map,
           const __grid_constant__ ptx::TensorMap k_map,
           const __grid_constant__ ptx::TensorMap v_map,
           const __grid_constant__ ptx::TensorMap out_map,
           const __grid_constant__ AttentionParams p, const __grid_constant__ Schedule schedule) {
#if SWA_EMULATED || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  auto& smem = ptx::shared_storage<SharedStorage<Traits>>();
  init(p, schedule, smem);
  if (ptx::lds<Segment>(ptx::smem_u32(&smem.segment)).seq < 0) return;
  const int warpgroup = ptx::warp_id() / 4;
  if (warpgroup == 0) {
    ptx::set_max_registers_down<56>();
    provide(p, schedule, smem, q_map, k_map, v_map);
  } else {
    ptx::set_max_registers_up<224>();
    Consumer<Traits>(p, schedule, smem, warpgroup - 1).run(out_map);
  }
#endif
}

// Which cases it is compiled for.
template <class Traits>
constexpr bool kCompiled = !Traits::kFloat8 && kTiling<Traits>.max_slots > 0;

template <class Traits>
size_t smem_bytes(int num_slots) {
  using Tile = KvTile<Traits::kHeadDim, Traits::kValueDim>;
  return offsetof(SharedStorage<Traits>, ring) + size_t(num_slots) * Tile::kBytes;
}

// How to cut this case up on this device, or num_slots = 0 if the kernel does not take it.
template <class Traits>
Schedule schedule_for(const AttentionParams& p, const Device& device) {
  const Schedule none{};
  if (device.compute_capability / 10 != 9 || p.group_size > kWarpgroupRows || !mappable(p) ||
      !(p.softmax_scale > 0.f))
    return none;
  if (p.window > kMaxWindow) return none;
  int shift = 0;
  while (p.group_size << (shift + 1) <= kWarpgroupRows) ++shift;
  const int step = kConsumers << shift;
  const int visible = (p.window + kTileKeys - 2) / kTileKeys + ptx::max(1, step / kTileKeys);
  int num_slots = kTiling<Traits>.max_slots;
  while (num_slots > 0 && smem_bytes<Traits>(num_slots) > size_t(device.max_smem_bytes))
    --num_slots;
  if (num_slots < visible) return none;
  const int64_t work = int64_t(p.total_q) * p.num_kv_heads;
  const int per_cta = int((work + device.num_sms - 1) / device.num_sms);
  return {shift,
          (per_cta + step - 1) / step * step,
          num_slots,
          num_slots - visible,
          keys_per_box(p.page_size),
          stores_boxes(p)};
}

template <class Traits>
ptx::Error launch(const AttentionParams& p, const Schedule& schedule, ptx::Stream stream) {
  const unsigned ranges =
      unsigned(max_query_ranges(p.total_q, p.num_seqs, schedule.tokens_per_segment));
  const ptx::Dim3 grid(ranges, unsigned(p.num_kv_heads));
  const ptx::TensorMap queries = map_queries(p, 1 << schedule.tokens_shift);
  const bool on_host = p.k.num_device_pages == 0;  // then the maps of pages are not used
  return ptx::launch({grid, kThreads, smem_bytes<Traits>(schedule.num_slots), 1, stream},
                     kernel<Traits>, queries,
                     on_host ? queries : map_pages(p, p.k, p.head_dim, schedule.keys_per_box),
                     on_host ? queries : map_pages(p, p.v, p.v_head_dim, schedule.keys_per_box),
                     schedule.stores_boxes ? map_outputs(p) : queries, p, schedule);
}

}  // namespace swa::cuda::sm90_swa_prefill
