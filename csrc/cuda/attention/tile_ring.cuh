// A ring of tiles in shared memory, between the thread that asks TMA for them, the warps that
// finish them (tile_loader.cuh) and the warps that use them. Uses of slots are counted from 0.
#pragma once
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/sync.cuh"
#include "cuda/ptx/thread.cuh"

namespace swa::cuda {

template <int kStages, int kTileBytes>
struct TileRingStorage {
  alignas(1024) uint8_t tiles[kStages][kTileBytes];
  uint64_t landed[kStages], ready[kStages], empty[kStages];
};

template <int kStages, int kTileBytes>
class TileRing {
 public:
  using Storage = TileRingStorage<kStages, kTileBytes>;

  SWA_DEVICE explicit TileRing(Storage& storage) : start_(ptx::smem_u32(&storage)) {}

  // By one thread, before fence_mbarrier_init. The numbers are those of warps.
  SWA_DEVICE void init(int num_finishers, int num_users) const {
    for (int slot = 0; slot < kStages; ++slot) {
      ptx::mbarrier_init(landed(slot), 1);
      ptx::mbarrier_init(ready(slot), uint32_t(num_finishers));
      ptx::mbarrier_init(empty(slot), uint32_t(num_users));
    }
  }

  SWA_DEVICE uint32_t tile(int use) const {
    return start_ + uint32_t(offsetof(Storage, tiles)) + uint32_t(use % kStages * kTileBytes);
  }
  SWA_DEVICE uint32_t landed(int use) const { return barrier(offsetof(Storage, landed), use); }

  SWA_DEVICE void wait_empty(int use) const { ptx::mbarrier_wait(empty(use), parity(use) ^ 1); }
  SWA_DEVICE void wait_landed(int use) const { ptx::mbarrier_wait(landed(use), parity(use)); }
  // For those who have waited for `landed`, too: only that says that TMA's bytes can be seen.
  SWA_DEVICE void wait_ready(int use) const { ptx::mbarrier_wait(ready(use), parity(use)); }

  // By a whole warp.
  SWA_DEVICE void set_ready(int use) const { arrive(ready(use)); }
  SWA_DEVICE void give_back(int use) const { arrive(empty(use)); }

 private:
  SWA_DEVICE static void arrive(uint32_t mbarrier) {
    ptx::sync_warp();
    if (ptx::lane_id() == 0) ptx::mbarrier_arrive(mbarrier);
  }
  SWA_DEVICE static uint32_t parity(int use) { return uint32_t(use / kStages & 1); }
  SWA_DEVICE uint32_t barrier(size_t offset, int use) const {
    return start_ + uint32_t(offset) + uint32_t(use % kStages) * uint32_t(sizeof(uint64_t));
  }
  SWA_DEVICE uint32_t ready(int use) const { return barrier(offsetof(Storage, ready), use); }
  SWA_DEVICE uint32_t empty(int use) const { return barrier(offsetof(Storage, empty), use); }

  uint32_t start_;
};

}  // namespace swa::cuda
