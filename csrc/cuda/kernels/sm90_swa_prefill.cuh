// Prefill for small windows on Hopper: TMA, wgmma, warp-specialised. A CTA walks along a segment of
// one sequence and KV head with the window in a ring of shared memory.
//
// Work: a step is a block of positions, at a multiple of its size, for two consumer warpgroups of
// 64 rows each: tokens_per_group tokens with all heads of their group. The size is a power of two,
// so that what a warpgroup sees touches at most kMaxTiles tiles of 64 keys, and its whole row of
// scores is one accumulator: one pass of softmax, nothing to rescale.
//
//   producer (1 thread)    page ids; TMA of tiles and queries; one tile ahead where there is room
//   finishers (3 warps)    host pages; clean values (tile_loader.cuh)
//   consumers (2 x 128)    S = Q K^T, softmax, O = P V, stores
//
// Barriers of a ring slot: `landed` (TMA's bytes), `ready` (finished), `empty` (8 consumer warps).
// A consumer gives a tile back after the last step in which it might see a key of it, whether it
// ever looked at it or not; never before it has the queries of a step whose tiles are all issued,
// so that arrivals of two uses of a slot do not meet in one phase.
#pragma once
#include "cuda/attention/epilogue.cuh"
#include "cuda/attention/special_values.cuh"
#include "cuda/attention/tile_loader.cuh"
#include "cuda/attention/wgmma_attention.cuh"
#include "cuda/attention/work.cuh"
#include "cuda/kernels/tensor_maps.h"
#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/registers.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/sync.cuh"

namespace swa::cuda::sm90_swa_prefill {

constexpr int kConsumers = 2, kFinishers = 3, kThreads = (1 + kConsumers) * 128;
constexpr int kMaxTiles = 3, kMaxSlots = 8;
constexpr int kTileKeys = 64, kTileSlices = kTileKeys / kSliceKeys;
// What up to 16 tokens see of a window of 114 to 129 keys; three tiles have 12.
constexpr int kNarrowSlices = 9;

struct Schedule {
  int tokens_shift;  // log2 of the tokens of a consumer's step
  int tokens_per_segment, num_slots, num_ahead, keys_per_box;
};

template <class Traits>
struct SharedStorage {
  static constexpr int kQueryBytes = kWarpgroupRows * Traits::kHeadDim * 2;
  uint64_t q_full[kConsumers], q_empty[kConsumers];
  uint64_t landed[kMaxSlots], ready[kMaxSlots], empty[kMaxSlots];
  uint32_t special[kMaxSlots][kFinishers];  // V had an infinity or NaN
  alignas(1024) uint8_t q[kConsumers][kQueryBytes];
  alignas(1024) uint8_t ring[1024];  // num_slots tiles; how many is known at launch
};

// What a CTA works on, in positions of the sequence's keys.
struct Segment {
  QueryRange range;
  int kv_head, first_position;  // of token 0
  int first, end;               // positions of its tokens
  int first_tile, last_tile;    // last_tile < first_tile: it sees nothing
  int window;

  SWA_DEVICE int first_key_for(int position) const { return ptx::max(0, position - window + 1); }
  SWA_DEVICE int first_tile_for(int position) const { return first_key_for(position) / kTileKeys; }
};

SWA_DEVICE Segment segment_of_cta(const AttentionParams& p, const Schedule& schedule) {
  Segment s;
  s.range = find_query_range(p, int(ptx::block_idx().x), schedule.tokens_per_segment);
  if (s.range.seq < 0) return s;
  const ptx::GlobalPointer<const int32_t> seqlens_k = p.seqlens_k;
  s.kv_head = int(ptx::block_idx().y);
  s.window = p.window;
  s.first_position = seqlens_k[s.range.seq] - s.range.q_len;
  s.first = s.first_position + s.range.first;
  s.end = s.first_position + s.range.end;
  s.first_tile = s.first_tile_for(s.first);
  s.last_tile = s.end > 0 ? (s.end - 1) / kTileKeys : s.first_tile - 1;
  return s;
}

// Tiles `index` of a segment in their slots.
template <class Traits>
struct RingView {
  SharedStorage<Traits>& smem;
  int first_tile, num_slots;

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
SWA_DEVICE void init(SharedStorage<Traits>& smem, int query_rows) {
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
  // Rows that no box of queries reaches.
  constexpr int kChunks = Traits::kHeadDim / 8;
  const int missing = (kWarpgroupRows - query_rows) * kChunks;
  for (int c = int(ptx::thread_idx().x); c < kConsumers * missing; c += kThreads) {
    const int row = query_rows + c % missing / kChunks;
    ptx::sts(ptx::smem_u32(smem.q[c / missing]) + panel_offset(kWarpgroupRows, row, c % kChunks),
             ptx::U32x4{0, 0, 0, 0});
  }
  ptx::fence_proxy_async();
  ptx::sync_threads();
}

// One thread's work.
template <class Traits>
SWA_DEVICE void produce(const AttentionParams& p, const Schedule& schedule, const Segment& segment,
                        const TileLoader<Traits>& loader, const RingView<Traits>& ring,
                        const ptx::TensorMap& q_map, const ptx::TensorMap& k_map,
                        const ptx::TensorMap& v_map) {
  const int tokens = 1 << schedule.tokens_shift, step = kConsumers * tokens;
  int next_tile = segment.first_tile;
  const auto issue_up_to = [&](int tile) {
    for (; next_tile <= ptx::min(tile, segment.last_tile); ++next_tile) {
      ptx::mbarrier_wait(ring.empty(next_tile), ring.parity(next_tile) ^ 1);
      loader.issue(next_tile, ring.address(next_tile), ring.landed(next_tile), k_map, v_map);
    }
  };
  uint32_t parity = 1;
  for (int position = segment.first & -step; position < segment.end;
       position += step, parity ^= 1) {
    const int last_tile =
        position + step > 0 ? (position + step - 1) / kTileKeys : segment.first_tile - 1;
    issue_up_to(last_tile);
    for (int i = 0; i < kConsumers; ++i) {
      const uint32_t full = ptx::smem_u32(&ring.smem.q_full[i]);
      ptx::mbarrier_wait(ptx::smem_u32(&ring.smem.q_empty[i]), parity);
      ptx::mbarrier_arrive_expect_tx(full, uint32_t(tokens * p.group_size * Traits::kHeadDim * 2));
      const int row = segment.range.first_row + position + i * tokens - segment.first_position;
      SWA_UNROLL
      for (int panel = 0; panel < Traits::kHeadDim / kPanelElements; ++panel)
        ptx::tma_load_3d(
            ptx::smem_u32(ring.smem.q[i]) + uint32_t(panel * kWarpgroupRows * kPanelRowBytes),
            &q_map, full, panel * kPanelElements, segment.kv_head * p.group_size, row);
    }
    issue_up_to(last_tile + schedule.num_ahead);
  }
}

template <class Traits>
SWA_DEVICE void finish(const Segment& segment, const TileLoader<Traits>& loader,
                       const RingView<Traits>& ring, int warp) {
  for (int tile = segment.first_tile; tile <= segment.last_tile; ++tile) {
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

// What is left of a step when its scores are there: kKeys of them, from slice `first` of the tile
// on.
template <class Traits, int kKeys>
SWA_DEVICE void finish_step(const RingView<Traits>& ring, int first_tile, int first,
                            const WarpRows& rows, const ScoreScale& scale, KeyScores<kKeys>& s,
                            SoftmaxState& state, Output<Traits>& out) {
  one_pass_softmax<kKeys>(s, first_tile * kTileKeys + first * kSliceKeys, rows, scale, state);
  KeyProbabilities<kKeys> probabilities;
  pack_probabilities<Traits, kKeys>(probabilities, s);
  using Tile = KvTile<Traits::kHeadDim, Traits::kValueDim>;
  const uint32_t last = ring.address(first_tile + (kKeys - 1) / kTileKeys);
  const uint32_t addresses[2] = {ring.address(first_tile), ring.address(first_tile + 1)};
  const auto values_at = [&](int tile) {  // selected, not indexed: addresses stay in registers
    return (tile == 0   ? addresses[0]
            : tile == 1 ? addresses[1]
                        : last) +
           uint32_t(Tile::kValueOffset);
  };
  start_values<Traits, kTileKeys>(out, probabilities, values_at, false, first);
  ptx::wgmma_wait<0>(flat<Traits>(out));
}

// A consumer's rows of a step over the kTiles tiles from first_tile on.
template <class Traits, int kTiles, class QueriesRead>
SWA_DEVICE void attend(const RingView<Traits>& ring, uint32_t queries, int first_tile,
                       const WarpRows& rows, const ScoreScale& scale, QueriesRead queries_read,
                       SoftmaxState& state, Output<Traits>& out) {
  constexpr int kKeys = kTiles * kTileKeys;
  KeyScores<kKeys> s;
  start_scores<Traits, kTileKeys>(s, queries, [&](int i) { return ring.address(first_tile + i); });
  ptx::wgmma_wait<0>(s);
  queries_read();
  finish_step<Traits, kKeys>(ring, first_tile, 0, rows, scale, s, state, out);
}

// The same over kNarrowSlices slices of three tiles, from slice `first` of first_tile on.
template <class Traits, class QueriesRead>
SWA_DEVICE void attend_narrow(const RingView<Traits>& ring, uint32_t queries, int first_tile,
                              int first, const WarpRows& rows, const ScoreScale& scale,
                              QueriesRead queries_read, SoftmaxState& state, Output<Traits>& out) {
  constexpr int kKeys = kNarrowSlices * kSliceKeys;
  KeyScores<kKeys> s;
  const auto keys_at = [&](int i) { return ring.address(first_tile + i); };
  switch (first) {  // the products' sizes; waited for in each branch, else ptxas serializes them
    case 0:
      start_scores<Traits, kTileKeys, 0>(s, queries, keys_at);
      ptx::wgmma_wait<0>(s);
      break;
    case 1:
      start_scores<Traits, kTileKeys, 1>(s, queries, keys_at);
      ptx::wgmma_wait<0>(s);
      break;
    case 2:
      start_scores<Traits, kTileKeys, 2>(s, queries, keys_at);
      ptx::wgmma_wait<0>(s);
      break;
    default:
      start_scores<Traits, kTileKeys, 3>(s, queries, keys_at);
      ptx::wgmma_wait<0>(s);
  }
  queries_read();
  finish_step<Traits, kKeys>(ring, first_tile, first, rows, scale, s, state, out);
}

// The consumer's part of a step: what the segment has of the tokens from `position` on.
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

template <class Traits>
SWA_DEVICE void consume(const AttentionParams& p, const Schedule& schedule, const Segment& segment,
                        const RingView<Traits>& ring, int consumer) {
  const int tokens = 1 << schedule.tokens_shift, step = kConsumers * tokens;
  const uint32_t queries = ptx::smem_u32(ring.smem.q[consumer]);
  const uint32_t q_full = ptx::smem_u32(&ring.smem.q_full[consumer]);
  const uint32_t q_empty = ptx::smem_u32(&ring.smem.q_empty[consumer]);
  const ScoreScale scale(p);
  const int head = segment.kv_head * p.group_size;
  const auto arrive = [](uint32_t mbarrier) {
    ptx::sync_warp();
    if (ptx::lane_id() == 0) ptx::mbarrier_arrive(mbarrier);
  };
  const auto queries_read = [&] { arrive(q_empty); };
  int held_tile = segment.first_tile;  // the first that has not been given back
  uint32_t parity = 0;
  for (int step_first = segment.first & -step; step_first < segment.end;
       step_first += step, parity ^= 1) {
    const int position = step_first + consumer * tokens;
    const WarpRows rows = rows_of(p, segment, position, tokens);
    // Of all 64 rows, so that the warpgroup agrees.
    const int last = ptx::min(position + tokens, segment.end) - 1;
    const int first_tile = segment.first_tile_for(ptx::max(position, segment.first));
    const int last_tile = last >= ptx::max(0, segment.first) ? last / kTileKeys : first_tile - 1;
    for (int tile = first_tile; tile <= last_tile; ++tile) {
      ptx::mbarrier_wait(ring.landed(tile), ring.parity(tile));
      ptx::mbarrier_wait(ring.ready(tile), ring.parity(tile));
    }
    ptx::mbarrier_wait(q_full, parity);
    // The last kNarrowSlices visible ones, if there are no more and they begin in the first tile.
    const int narrow = last / kSliceKeys - kNarrowSlices + 1 - first_tile * kTileSlices;
    const bool is_narrow = last_tile - first_tile == 2 && narrow >= 0 &&
                           segment.first_key_for(ptx::max(position, segment.first)) / kSliceKeys >=
                               first_tile * kTileSlices + narrow;
    SoftmaxState state;
    Output<Traits> out = {};
    switch (last_tile - first_tile + 1) {
      case 3:
        if (is_narrow)
          attend_narrow<Traits>(ring, queries, first_tile, narrow, rows, scale, queries_read, state,
                                out);
        else
          attend<Traits, 3>(ring, queries, first_tile, rows, scale, queries_read, state, out);
        break;
      case 2:
        attend<Traits, 2>(ring, queries, first_tile, rows, scale, queries_read, state, out);
        break;
      case 1:
        attend<Traits, 1>(ring, queries, first_tile, rows, scale, queries_read, state, out);
        break;
      default:
        queries_read();
    }
    if (has_special_values(ring, first_tile, last_tile))
      add_special_values(out,
                         KvLoader<Traits>(p, segment.range.seq, segment.kv_head,
                                          ptx::max(0, segment.first - p.window + 1), segment.end),
                         rows);
    const int issued_tile = (step_first + step - 1) / kTileKeys;
    const int next_tile = ptx::min(segment.first_tile_for(position + step),
                                   ptx::min(issued_tile, segment.last_tile) + 1);
    for (; held_tile < next_tile; ++held_tile) arrive(ring.empty(held_tile));
    const int64_t row = segment.range.first_row + position - segment.first_position;
    store_results<Traits>(p, rows, head,
                          p.out + row * p.out_token_stride + head * p.out_head_stride,
                          p.lse + row * p.num_kv_heads * p.group_size + head, state, out);
  }
}

template <class Traits>
__global__ void __launch_bounds__(kThreads, 1)
    kernel(const __grid_constant__ ptx::TensorMap q_map,
           const __grid_constant__ ptx::TensorMap k_map,
           const __grid_constant__ ptx::TensorMap v_map, const __grid_constant__ AttentionParams p,
           const __grid_constant__ Schedule schedule) {
#if SWA_EMULATED || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const Segment segment = segment_of_cta(p, schedule);
  if (segment.range.seq < 0) return;
  auto& smem = ptx::shared_storage<SharedStorage<Traits>>();
  const RingView<Traits> ring{smem, segment.first_tile, schedule.num_slots};
  init(smem, p.group_size << schedule.tokens_shift);
  const int warpgroup = ptx::warp_id() / 4;
  if (warpgroup == 0) {
    ptx::set_max_registers_down<56>();
    const TileLoader<Traits> loader(p, schedule.keys_per_box, segment.range.seq, segment.kv_head,
                                    ptx::max(0, segment.first - p.window + 1), segment.end);
    if (ptx::warp_id() > 0)
      finish(segment, loader, ring, ptx::warp_id() - 1);
    else if (ptx::elect_one())
      produce(p, schedule, segment, loader, ring, q_map, k_map, v_map);
  } else {
    ptx::set_max_registers_up<224>();
    consume(p, schedule, segment, ring, warpgroup - 1);
  }
#endif
}

// Which cases it is compiled for.
template <class Traits>
constexpr bool kCompiled = !Traits::kFloat8 && Traits::kHeadDim < 256;

template <class Traits>
size_t smem_bytes(int num_slots) {
  using Tile = KvTile<Traits::kHeadDim, Traits::kValueDim>;
  return offsetof(SharedStorage<Traits>, ring) + size_t(num_slots) * Tile::kBytes;
}

// How to cut this case up on this device, or num_slots = 0 if the kernel does not take it.
template <class Traits>
Schedule schedule_for(const AttentionParams& p, const Device& device) {
  const Schedule none{};
  if (device.compute_capability / 10 != 9 || p.group_size > kWarpgroupRows || !mappable(p))
    return none;
  if (p.window > (kMaxTiles - 1) * kTileKeys + 1) return none;
  int shift = 0;
  while (p.group_size << (shift + 1) <= kWarpgroupRows) ++shift;
  const int step = kConsumers << shift;
  const int visible = (p.window + kTileKeys - 2) / kTileKeys + ptx::max(1, step / kTileKeys);
  int num_slots = kMaxSlots;
  while (num_slots > 0 && smem_bytes<Traits>(num_slots) > size_t(device.max_smem_bytes))
    --num_slots;
  if (num_slots < visible) return none;
  const int64_t work = int64_t(p.total_q) * p.num_kv_heads;
  const int per_cta = int((work + device.num_sms - 1) / device.num_sms);
  return {shift, (per_cta + step - 1) / step * step, num_slots, num_slots - visible,
          keys_per_box(p.page_size)};
}

template <class Traits>
ptx::Error launch(const AttentionParams& p, const Schedule& schedule, ptx::Stream stream) {
  const unsigned ranges =
      unsigned(max_query_ranges(p.total_q, p.num_seqs, schedule.tokens_per_segment));
  const ptx::Dim3 grid(ranges, unsigned(p.num_kv_heads));
  const ptx::TensorMap queries = map_queries(p, 1 << schedule.tokens_shift);
  const bool on_host = p.k.num_device_pages == 0;  // then the maps of pages are not used
  return ptx::launch(
      {grid, kThreads, smem_bytes<Traits>(schedule.num_slots), 1, stream}, kernel<Traits>, queries,
      on_host ? queries : map_pages(p, p.k, p.head_dim, schedule.keys_per_box),
      on_host ? queries : map_pages(p, p.v, p.v_head_dim, schedule.keys_per_box), p, schedule);
}

}  // namespace swa::cuda::sm90_swa_prefill
