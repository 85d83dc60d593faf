// Decode on Hopper: 1 to 8 query tokens per sequence; TMA and mma.sync, a CTA per sequence, KV head
// and split of the keys.
//
// Work: as sm80_decode, bit for bit, whose slices, warps and order these are. Four key warps take
// every fourth slice each and ask TMA for it themselves: before the join they wait for nobody.
//
//   resident   the whole range has room: all of it is on its way before the first product. Two or
//              more CTAs per SM, so that one's keys are on their way while another multiplies.
//              More than 16 rows are further passes, which find the keys where they lie; or CTAs
//              next to each other, which find them in L2, where a small batch leaves SMs idle and
//              no page is on the host
//   ring       a warp's slots are loaded again as soon as it has read them. More than 16 rows are
//              two warps per key warp, which share its slots; more than 32 are CTAs next to each
//              other, which find the keys in L2
//
// Windows up to kSplitKeys are one launch: no plan, no combine. Longer ranges are cut into splits,
// whose results smxx_combine joins. The grid depends on shapes only.
//
// Shared memory: barriers and the join, 12 KB, then the slots. For 192 / 128 in bf16 and a window
// of 128, 9 or 10 slots of 10 KB: two CTAs per SM.
#pragma once
#include "cuda/attention/decode_join.cuh"
#include "cuda/attention/decode_split.cuh"
#include "cuda/attention/slice_loader.cuh"
#include "cuda/kernels/tensor_maps.h"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/grid_dependency.cuh"
#include "cuda/ptx/launch.cuh"

namespace swa::cuda::sm90_decode {

constexpr int kMaxSlots = 64, kMaxRingDepth = 4;

struct Schedule {
  int num_slots;  // of a CTA; 0: the kernel does not take the case
  int depth;      // slots of a warp; in a ring all warps have as many
  int keys_per_box;
  int row_warps;   // per key warp
  int row_blocks;  // CTAs that share the rows of a sequence and KV head
  bool resident;
};

template <class Traits>
constexpr int kSlotBytes = (Traits::Slice::kBytes + Traits::Slice::Panel::kAlignment - 1) /
                           Traits::Slice::Panel::kAlignment * Traits::Slice::Panel::kAlignment;

template <class Traits, int kRowWarps>
struct SharedStorage {
  uint64_t landed[kMaxSlots];
  uint32_t finite[kKeyWarps * kRowWarps];
  JoinStorage<Traits> join[kRowWarps];
  alignas(1024) uint8_t slots[1024];  // how many is known at launch
};

// A key warp's slices of a range of keys and its slots for them. Uses of slots are counted from 0.
template <class Traits, int kRowWarps>
class WarpSlices {
 public:
  SWA_DEVICE WarpSlices(SharedStorage<Traits, kRowWarps>& smem, const Schedule& schedule,
                        const SliceLoader<Traits>& loader, KeyRange keys)
      : smem_(smem), schedule_(schedule), loader_(loader) {
    const int first = keys.begin / kSliceKeys, end = (keys.end + kSliceKeys - 1) / kSliceKeys;
    first_slot_ = (ptx::warp_id() - first) & (kKeyWarps - 1);
    first_ = first + first_slot_;
    count_ = first_ < end ? (end - first_ + kKeyWarps - 1) / kKeyWarps : 0;
  }

  SWA_DEVICE int count() const { return count_; }
  SWA_DEVICE int index(int i) const { return first_ + i * kKeyWarps; }
  SWA_DEVICE uint32_t slot(int use) const {
    return ptx::smem_u32(smem_.slots) + uint32_t(slot_number(use) * kSlotBytes<Traits>);
  }

  // Asks for the slices that have room; the first one is use number `use`.
  SWA_DEVICE void start(int use) const {
    release();
    const int lane = ptx::lane_id();
    const bool boxed = lane < ptx::min(schedule_.depth, count_) && loader_.boxed(index(lane));
    if (boxed && row_warp() == 0) loader_.issue(index(lane), slot(use + lane), landed(use + lane));
    const uint32_t boxes = ptx::ballot(boxed);
    for (int i = 0; i < schedule_.depth; ++i) load_rest(i, use + i, boxes >> i & 1);
  }

  // After the i-th slice, use number `use`, has been read: asks for the one that takes its slot.
  SWA_DEVICE void next(int i, int use) const {
    if (schedule_.resident) return ptx::cp_async_commit();  // wait() counts groups
    i += schedule_.depth, use += schedule_.depth;
    release();
    const bool boxed = i < count_ && loader_.boxed(index(i));
    if (boxed && row_warp() == 0 && ptx::lane_id() == 0)
      loader_.issue(index(i), slot(use), landed(use));
    load_rest(i, use, boxed);
  }

  SWA_DEVICE void wait(int use, bool careful) const {
    wait_for_copies(schedule_.depth - 1);
    ptx::mbarrier_wait(landed(use), uint32_t(use / schedule_.depth & 1));
    if (careful) loader_.rows().clear_special_values(slot(use), row_warp(), kRowWarps);
    meet();
  }

 private:
  SWA_DEVICE int slot_number(int use) const {
    return first_slot_ + use % schedule_.depth * kKeyWarps;
  }
  SWA_DEVICE uint32_t landed(int use) const {
    return ptx::smem_u32(&smem_.landed[slot_number(use)]);
  }

  SWA_DEVICE static int row_warp() { return kRowWarps == 1 ? 0 : ptx::warp_id() / kKeyWarps; }

  // The key warp's row warps see what each of them has loaded or written.
  SWA_DEVICE static void meet() {
    if constexpr (kRowWarps == 1)
      ptx::sync_warp();
    else
      ptx::barrier_sync(1 + ptx::warp_id() % kKeyWarps, 32 * kRowWarps);
  }

  // All lanes are done with what they have read or written in slots.
  SWA_DEVICE static void release() {
    ptx::fence_proxy_async();
    meet();
  }

  // One group of copies for each use, so that wait can count them.
  SWA_DEVICE void load_rest(int i, int use, bool boxed) const {
    if (i < count_)
      loader_.load_rest(index(i), slot(use), landed(use), boxed, row_warp(), kRowWarps);
    ptx::cp_async_commit();
  }

  SharedStorage<Traits, kRowWarps>& smem_;
  const Schedule& schedule_;
  const SliceLoader<Traits>& loader_;
  int first_slot_, first_, count_;
};

// Attention of 16 rows over this warp's slices, which have been started as `use`.
template <class Traits, int kRowWarps>
SWA_DEVICE void attend_slices(const WarpSlices<Traits, kRowWarps>& slices, int use,
                              const Query<Traits>& query, const WarpRows& rows,
                              const ScoreScale& scale, bool careful, SoftmaxState& state,
                              Output<Traits>& out) {
  for (int i = 0; i < slices.count(); ++i) {
    slices.wait(use + i, careful);
    const auto slice_at = [&](int) { return slices.slot(use + i); };
    attend_tile<Traits, 1>(query, slices.index(i) * kSliceKeys, rows, scale, slice_at, state, out);
    slices.next(i, use + i);
  }
}

template <class Traits, int kRowWarps>
SWA_DEVICE void init(SharedStorage<Traits, kRowWarps>& smem, int num_slots) {
  if (int(ptx::thread_idx().x) < num_slots) {
    ptx::mbarrier_init(ptx::smem_u32(&smem.landed[ptx::thread_idx().x]), 1);
    ptx::fence_mbarrier_init();
  }
  ptx::sync_threads();
}

template <class Traits, int kRowWarps>
__global__ void __launch_bounds__(32 * kKeyWarps * kRowWarps, kRowWarps == 1 ? 2 : 1)
    kernel(const __grid_constant__ ptx::TensorMap k_map,
           const __grid_constant__ ptx::TensorMap v_map, const __grid_constant__ AttentionParams p,
           const __grid_constant__ Schedule schedule) {
#if SWA_EMULATED || (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1000)
  constexpr int kRows = kRowWarps * kWarpRows;
  const int split = int(ptx::block_idx().x) / schedule.row_blocks;
  const int row_block = int(ptx::block_idx().x) % schedule.row_blocks;
  const int kv_head = int(ptx::block_idx().y);
  const int seq = int(ptx::block_idx().z);
  const ptx::GlobalPointer<const int32_t> seqlens_k = p.seqlens_k;
  const int seqlen_k = seqlens_k[seq];
  KeyRange keys = visible_keys(p, seqlen_k);
  if (p.num_splits > 1) {
    if (split >= splits_touched(keys)) return;
    keys = split_of(keys, split);
  }
  ptx::launch_dependents();
  auto& smem = ptx::shared_storage<SharedStorage<Traits, kRowWarps>>();
  init(smem, schedule.num_slots);
  const KvLoader<Traits> loader(p, seq, kv_head, keys.begin, keys.end);
  const SliceLoader<Traits> boxes(loader, p, schedule.keys_per_box, kv_head, k_map, v_map);
  const WarpSlices<Traits, kRowWarps> slices(smem, schedule, boxes, keys);
  const ScoreScale scale(p);
  const char* first_query =
      p.q + seq * p.q_seq_stride + int64_t(kv_head) * p.group_size * p.q_head_stride;

  int use = 0;
  bool careful = false;  // stays so: resident values have been cleared
  slices.start(use);
  for (int first_row = row_block * kRows; first_row < p.q_len * p.group_size;
       first_row += schedule.row_blocks * kRows) {
    const WarpRows rows = warp_rows(first_row + ptx::warp_id() / kKeyWarps * kWarpRows, p.q_len,
                                    p.group_size, seqlen_k - p.q_len, p.window);
    Query<Traits> query;
    query.load(p, first_query, rows);
    for (;;) {
      SoftmaxState state;
      Output<Traits> out = {};
      attend_slices(slices, use, query, rows, scale, careful, state, out);
      const DecodePass pass = {seq, kv_head, split, first_row, seqlen_k - p.q_len};
      if (join_and_store(p, smem.join, smem.finite, pass, loader, careful, state, out) || careful)
        break;
      careful = true;
      if (schedule.resident) continue;
      use += slices.count();
      slices.start(use);
    }
  }
#endif
}

template <class Traits, int kRowWarps>
size_t smem_bytes(int num_slots) {
  using Storage = SharedStorage<Traits, kRowWarps>;
  return offsetof(Storage, slots) + size_t(num_slots) * kSlotBytes<Traits>;
}

// Slices that the keys of a CTA touch at most.
inline int max_slices(const AttentionParams& p) {
  const int64_t all = int64_t(p.max_pages) * p.page_size;
  const int64_t visible = ptx::min(int64_t(p.window) + p.q_len - 1, all);
  if (p.num_splits > 1) return kSplitKeys / kSliceKeys;
  return int(
      ptx::min((visible + kSliceKeys - 2) / kSliceKeys + 1, (all + kSliceKeys - 1) / kSliceKeys));
}

// Slots that `bytes` of shared memory have room for.
template <class Traits, int kRowWarps>
int slots_in(int bytes) {
  const int room = bytes - int(smem_bytes<Traits, kRowWarps>(0));
  return room < 0 ? 0 : ptx::min(room / kSlotBytes<Traits>, kMaxSlots);
}

template <class Traits>
Schedule schedule_for(const AttentionParams& p, const Device& device) {
  const int box = keys_per_box(p.page_size, kSliceKeys);
  if (device.compute_capability / 10 != 9 || box == 0 || !mappable(p.k) || !mappable(p.v))
    return {};
  constexpr int kReservedBytes = 1024;  // per CTA, by the system
  const int half_bytes = (device.max_smem_bytes + kReservedBytes) / 2 - kReservedBytes;
  const int all = slots_in<Traits, 1>(device.max_smem_bytes);
  const int half = slots_in<Traits, 1>(half_bytes);
  const int needed = max_slices(p), rows = p.q_len * p.group_size;
  if (needed <= half || (needed <= all && rows > kWarpRows)) {
    // Not where a page may be on the host, whose link would carry it again.
    const int idle =
        p.k.num_host_pages > 0 ? 1 : device.num_sms / ptx::max(1, p.num_seqs * p.num_kv_heads);
    const int row_blocks = ptx::max(1, ptx::min(idle, (rows + kWarpRows - 1) / kWarpRows));
    return {ptx::max(needed, 1), (needed + kKeyWarps - 1) / kKeyWarps, box, 1, row_blocks, true};
  }
  const int row_warps = rows > kWarpRows ? 2 : 1;
  int slots = slots_in<Traits, 2>(device.max_smem_bytes);
  if (row_warps == 1) slots = half >= 2 * kKeyWarps ? half : all;
  const int depth = ptx::min(slots / kKeyWarps, kMaxRingDepth);
  const int cta_rows = row_warps * kWarpRows;
  return {depth * kKeyWarps, depth, box, row_warps, (rows + cta_rows - 1) / cta_rows, false};
}

template <class Traits, int kRowWarps>
ptx::Error launch(const AttentionParams& p, const Schedule& schedule, ptx::Stream stream) {
  const ptx::Dim3 grid(unsigned(p.num_splits * schedule.row_blocks), unsigned(p.num_kv_heads),
                       unsigned(p.num_seqs));
  const bool on_host = p.k.num_device_pages == 0;  // then the maps are not used
  const auto map = [&](const PagePool& pool, int dim) {
    return on_host ? ptx::TensorMap{} : map_pages(p, pool, dim, schedule.keys_per_box);
  };
  return ptx::launch({grid, 32 * kKeyWarps * kRowWarps,
                      smem_bytes<Traits, kRowWarps>(schedule.num_slots), 1, stream},
                     kernel<Traits, kRowWarps>, map(p.k, p.head_dim), map(p.v, p.v_head_dim), p,
                     schedule);
}

template <class Traits>
ptx::Error launch(const AttentionParams& p, const Schedule& schedule, ptx::Stream stream) {
  return schedule.row_warps == 1 ? launch<Traits, 1>(p, schedule, stream)
                                 : launch<Traits, 2>(p, schedule, stream);
}

}  // namespace swa::cuda::sm90_decode
