// The asynchronous proxy: bulk copies, TMA and wgmma.
#include "detector.hpp"

namespace swa::test {

using namespace ptx;

static void load(Scene& s, uint32_t bytes) {  // thread 0 copies source to words
  if (s.t) return;
  mbarrier_arrive_expect_tx(s.barrier, bytes);
  bulk_load(s.words_at, s.source, bytes, s.barrier);
}

// Both wgmma operands: 64 rows of 64 bf16, swizzled, zeros; visible to the asynchronous proxy if
// `fenced`.
static void fill_tile(Scene& s, bool fenced) {
  for (int i = s.t; i < 1024; i += 128) sts(s.tile + uint32_t(i) * 16, U32x4{});
  if (fenced) fence_proxy_async();
  sync_threads();
}
static uint64_t tile_descriptor(const Scene& s) {
  return wgmma_descriptor(Swizzle::k128, s.tile, 16, 1024);
}
static void issue(Scene& s, float (&d)[32], bool accumulate) {
  wgmma_ss<64, Half::kBf16, Major::kK>(d, tile_descriptor(s), tile_descriptor(s), accumulate);
}

static const DetectorCase cases[] = {
    {"bulk_load", 64,
     [](Scene& s) {
       s.init_barrier(1);
       load(s, 256);
       mbarrier_wait(s.barrier, 0);
       s.read(s.t);
     }},
    {"bulk_load_not_waited_for", 64,
     [](Scene& s) {
       s.init_barrier(1);
       load(s, 256);
       sync_threads();
       s.read(s.t);
     }},
    {"bulk_load_barrier_not_fenced", 64,
     [](Scene& s) {
       if (s.t == 0) mbarrier_init(s.barrier, 1);
       sync_threads();
       load(s, 256);
       mbarrier_wait(s.barrier, 0);
     }},
    {"bulk_load_too_many_bytes_expected", 64,
     [](Scene& s) {
       s.init_barrier(1);
       if (s.t == 0) {
         mbarrier_arrive_expect_tx(s.barrier, 512);
         bulk_load(s.words_at, s.source, 256, s.barrier);
       }
       mbarrier_wait(s.barrier, 0);
     }},
    {"bulk_load_no_bytes_expected", 64,
     [](Scene& s) {
       s.init_barrier(1);
       if (s.t == 0) bulk_load(s.words_at, s.source, 256, s.barrier);
     }},
    {"bulk_load_over_words_being_read", 64,
     [](Scene& s) {
       s.init_barrier(1);
       load(s, 256);
       mbarrier_wait(s.barrier, 0);
       s.read(s.t);
       load(s, 256);
       mbarrier_wait(s.barrier, 1);
     }},
    {"bulk_load_over_words_read_before_barrier", 64,
     [](Scene& s) {
       s.init_barrier(1);
       load(s, 256);
       mbarrier_wait(s.barrier, 0);
       s.read(s.t);
       sync_threads();
       load(s, 256);
       mbarrier_wait(s.barrier, 1);
     }},
    {"bulk_load_over_generic_write", 64,
     [](Scene& s) {
       s.init_barrier(1);
       s.words[s.t] = 1;
       sync_threads();
       load(s, 256);
       mbarrier_wait(s.barrier, 0);
     }},
    {"bulk_load_over_fenced_generic_write", 64,
     [](Scene& s) {
       s.init_barrier(1);
       s.words[s.t] = 1;
       fence_proxy_async();
       sync_threads();
       load(s, 256);
       mbarrier_wait(s.barrier, 0);
     }},
    {"bulk_load_source_past_end", 64,
     [](Scene& s) {
       s.init_barrier(1);
       if (s.t == 0) bulk_load(s.words_at, s.source + 1020, 32, s.barrier);
     }},
    {"bulk_load_odd_size", 64,
     [](Scene& s) {
       s.init_barrier(1);
       if (s.t == 0) bulk_load(s.words_at, s.source, 24, s.barrier);
     }},
    {"bulk_store", 64,
     [](Scene& s) {
       s.words[s.t] = uint32_t(s.t);
       fence_proxy_async();
       sync_threads();
       if (s.t) return;
       bulk_store(s.sink, s.words_at, 256);
       bulk_commit();
       bulk_wait<0>();
     }},
    {"bulk_store_not_fenced", 64,
     [](Scene& s) {
       s.words[s.t] = uint32_t(s.t);
       sync_threads();
       if (s.t) return;
       bulk_store(s.sink, s.words_at, 256);
       bulk_commit();
       bulk_wait<0>();
     }},
    {"bulk_store_fenced_by_the_wrong_thread", 64,
     [](Scene& s) {
       s.words[s.t] = uint32_t(s.t);
       sync_threads();
       if (s.t) return;
       fence_proxy_async();
       bulk_store(s.sink, s.words_at, 256);
       bulk_commit();
       bulk_wait<0>();
     }},
    {"bulk_store_source_overwritten", 64,
     [](Scene& s) {
       s.words[s.t] = uint32_t(s.t);
       fence_proxy_async();
       sync_threads();
       if (s.t) return;
       bulk_store(s.sink, s.words_at, 256);
       bulk_commit();
       s.words[0] = 1;
       bulk_wait<0>();
     }},
    {"bulk_store_source_overwritten_after_wait", 64,
     [](Scene& s) {
       s.words[s.t] = uint32_t(s.t);
       fence_proxy_async();
       sync_threads();
       if (s.t) return;
       bulk_store(s.sink, s.words_at, 256);
       bulk_commit();
       bulk_wait<0>();
       s.words[0] = 1;
     }},
    {"bulk_store_never_waited_for", 64,
     [](Scene& s) {
       s.words[s.t] = uint32_t(s.t);
       fence_proxy_async();
       sync_threads();
       if (s.t == 0) bulk_store(s.sink, s.words_at, 256);
     }},
    {"bulk_store_to_input", 64,
     [](Scene& s) {
       if (s.t == 0) bulk_store(const_cast<uint32_t*>(s.source), s.words_at, 256);
     }},
    {"tma_store", 64,
     [](Scene& s) {
       const TensorMap map = s.sink_map();
       s.words[s.t] = uint32_t(s.t);
       fence_proxy_async();
       sync_threads();
       if (s.t) return;
       tma_store_3d(&map, s.words_at, 0, 0, 0);
       bulk_commit();
       bulk_wait_read<0>();
       s.words[0] = 1;
     }},
    {"tma_store_not_fenced", 64,
     [](Scene& s) {
       const TensorMap map = s.sink_map();
       s.words[s.t] = uint32_t(s.t);
       sync_threads();
       if (s.t) return;
       tma_store_3d(&map, s.words_at, 0, 0, 0);
       bulk_commit();
       bulk_wait_read<0>();
     }},
    {"tma_store_source_overwritten", 64,
     [](Scene& s) {
       const TensorMap map = s.sink_map();
       s.words[s.t] = uint32_t(s.t);
       fence_proxy_async();
       sync_threads();
       if (s.t) return;
       tma_store_3d(&map, s.words_at, 0, 0, 0);
       bulk_commit();
       s.words[5] = 1;
       bulk_wait_read<0>();
     }},
    {"tma_store_never_waited_for", 64,
     [](Scene& s) {
       const TensorMap map = s.sink_map();
       s.words[s.t] = uint32_t(s.t);
       fence_proxy_async();
       sync_threads();
       if (s.t == 0) tma_store_3d(&map, s.words_at, 0, 0, 0);
     }},
    {"grid_waited_for", 32,
     [](Scene& s) {
       const uint32_t x = ldg<uint32_t>(s.source + s.t);
       const GlobalPointer<const uint32_t> sink = s.sink;
       wait_for_grid();
       stg(s.sink + s.t, x + sink[32 + s.t]);
     },
     1, true},
    {"grid_output_read_too_early", 32,
     [](Scene& s) {
       const GlobalPointer<const uint32_t> sink = s.sink;
       const uint32_t x = sink[32 + s.t];
       wait_for_grid();
       stg(s.sink + s.t, x);
     },
     1, true},
    {"grid_output_written_too_early", 32,
     [](Scene& s) {
       stg(s.sink + s.t, 1u);
       wait_for_grid();
     },
     1, true},
    {"grid_output_read_as_constant", 32,
     [](Scene& s) {
       wait_for_grid();
       stg(s.sink + s.t, ldg<uint32_t>(s.sink + 32 + s.t));
     },
     1, true},
    {"grid_waited_for_by_one_thread", 32,
     [](Scene& s) {
       if (s.t == 0) wait_for_grid();
       sync_threads();
       stg(s.sink + s.t, 1u);
     },
     1, true},
    {"cp_async_mbarrier", 64,
     [](Scene& s) {
       s.init_barrier(32);
       if (s.warp == 0) {
         cp_async<16>(s.word_address(s.t * 4), s.source + s.t * 4, 16);
         cp_async_mbarrier_arrive_noinc(s.barrier);
       } else {
         mbarrier_wait(s.barrier, 0);
         s.read(s.lane * 4 + 1);
       }
     }},
    {"cp_async_mbarrier_not_waited_for", 64,
     [](Scene& s) {
       s.init_barrier(32);
       if (s.warp == 0) {
         cp_async<16>(s.word_address(s.t * 4), s.source + s.t * 4, 16);
         cp_async_mbarrier_arrive_noinc(s.barrier);
       }
       sync_threads();
       s.read(s.lane * 4 + 1);
     }},
    {"tma_map_not_encoded", 32,
     [](Scene& s) {
       alignas(64) TensorMap map = {};
       s.init_barrier(1);
       if (s.t == 0) tma_load_2d(s.tile, &map, s.barrier, 0, 0);
     }},
    {"wgmma", 128,
     [](Scene& s) {
       float d[32] = {};
       fill_tile(s, true);
       wgmma_fence(d);
       issue(s, d, false);
       issue(s, d, true);
       wgmma_commit();
       wgmma_wait<0>(d);
       stg(s.sink + s.t, d[0] + d[31]);
     }},
    {"wgmma_operand_not_fenced", 128,
     [](Scene& s) {
       float d[32] = {};
       fill_tile(s, false);
       wgmma_fence(d);
       issue(s, d, false);
       wgmma_commit();
       wgmma_wait<0>(d);
     }},
    {"wgmma_without_fence", 128,
     [](Scene& s) {
       float d[32] = {};
       fill_tile(s, true);
       issue(s, d, false);
       wgmma_commit();
       wgmma_wait<0>(d);
     }},
    {"wgmma_accumulator_touched_in_flight", 128,
     [](Scene& s) {
       float d[32] = {};
       fill_tile(s, true);
       wgmma_fence(d);
       issue(s, d, false);
       wgmma_commit();
       d[3] = 1.f;
       wgmma_wait<0>(d);
       stg(s.sink + s.t, d[3]);
     }},
    {"wgmma_never_waited_for", 128,
     [](Scene& s) {
       float d[32] = {};
       fill_tile(s, true);
       wgmma_fence(d);
       issue(s, d, false);
       wgmma_commit();
       sync_threads();
     }},
    {"wgmma_operand_overwritten_in_flight", 128,
     [](Scene& s) {
       float d[32] = {};
       fill_tile(s, true);
       wgmma_fence(d);
       issue(s, d, false);
       wgmma_commit();
       sync_threads();
       if (s.t == 0) sts(s.tile, 1u);
       wgmma_wait<0>(d);
     }},
    {"wgmma_operand_overwritten_after_wait", 128,
     [](Scene& s) {
       float d[32] = {};
       fill_tile(s, true);
       wgmma_fence(d);
       issue(s, d, false);
       wgmma_commit();
       wgmma_wait<0>(d);
       sync_threads();
       if (s.t == 0) sts(s.tile, 1u);
     }},
    {"wgmma_warps_differ", 128,
     [](Scene& s) {
       float d[32] = {};
       fill_tile(s, true);
       wgmma_fence(d);
       wgmma_ss<64, Half::kBf16, Major::kK>(d, tile_descriptor(s),
                                            tile_descriptor(s) + (s.warp == 3 ? 2 : 0), false);
       wgmma_commit();
       wgmma_wait<0>(d);
     }},
    {"wgmma_lanes_differ", 128,
     [](Scene& s) {
       float d[32] = {};
       fill_tile(s, true);
       wgmma_fence(d);
       wgmma_ss<64, Half::kBf16, Major::kK>(d, tile_descriptor(s),
                                            tile_descriptor(s) + (s.lane == 3 ? 2 : 0), false);
     }},
    {"wgmma_start_off_the_pattern", 128,
     [](Scene& s) {
       float d[32] = {};
       fill_tile(s, true);
       wgmma_fence(d);
       wgmma_ss<64, Half::kBf16, Major::kK>(d, tile_descriptor(s) + (128 >> 4), tile_descriptor(s),
                                            false);
     }},
};

}  // namespace swa::test
