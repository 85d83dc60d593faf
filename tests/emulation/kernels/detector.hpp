// Tiny kernels that make one mistake, or come close to it and do not. The tests say which report
// each must give.
#pragma once
#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/grid_dependency.cuh"
#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/ld_st.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/shuffle.cuh"
#include "cuda/ptx/sync.cuh"
#include "cuda/ptx/thread.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "emulation/registry.hpp"

namespace swa::test {

// What a case sees: its thread, shared memory, and two global buffers of 1024 words.
struct Scene {
  struct Storage {
    uint8_t tile[2][8192];
    uint32_t words[256];
    uint64_t barrier[2];
  };
  Storage& smem = ptx::shared_storage<Storage>();
  int t = int(ptx::thread_idx().x), lane = ptx::lane_id(), warp = ptx::warp_id();
  ptx::SharedPointer<uint32_t> words{smem.words};
  uint32_t words_at = ptx::smem_u32(smem.words);
  uint32_t barrier = ptx::smem_u32(smem.barrier);
  uint32_t tile = ptx::smem_u32(smem.tile);
  const uint32_t* source;  // read-only
  uint32_t* sink;          // writable

  Scene(const uint32_t* source_, uint32_t* sink_) : source(source_), sink(sink_) {}
  uint32_t word_address(int i) const { return words_at + uint32_t(i) * 4; }
  void read(int i SWA_LOC) const { (void)uint32_t(words[{i, loc}]); }

  // 64 words of the sink in a box of rows of 32 bytes.
  ptx::TensorMap sink_map() const {
    return ptx::encode_tensor_map(
        {sink, ptx::ElementType::kBf16, 3, {16, 2, 4}, {32, 64}, {16, 2, 4}, ptx::Swizzle::kNone});
  }

  // An mbarrier ready for everybody, TMA included.
  void init_barrier(uint32_t count) const {
    if (t == 0) {
      ptx::mbarrier_init(barrier, count);
      ptx::fence_mbarrier_init();
    }
    ptx::sync_threads();
  }
};

// Registers `body` as "detector/<name>", one block (or one cluster) of `threads`.
struct DetectorCase {
  DetectorCase(const char* name, unsigned threads, void (*body)(Scene&), unsigned cluster = 1,
               bool dependent = false)
      : registration("detector/" + std::string(name), [=](const emu::Args& a) {
          const auto* source = a.pointer<const uint32_t>("source");
          auto* sink = a.pointer<uint32_t>("sink");
          emu::launch({cluster, threads, sizeof(Scene::Storage), cluster, dependent}, [=] {
            Scene scene(source, sink);
            body(scene);
          });
        }) {}
  emu::Registration registration;
};

}  // namespace swa::test
