// Collectives, barriers and mbarriers.
#include "detector.hpp"

namespace swa::test {

using namespace ptx;

static const DetectorCase cases[] = {
    {"barrier_missed_by_threads", 64,
     [](Scene& s) {
       if (s.t < 40) sync_threads();
     }},
    {"barrier_on_two_lines", 64,
     [](Scene& s) {
       if (s.t & 1)
         sync_threads();
       else
         sync_threads();
     }},
    {"barrier_skipped_by_a_warp", 64,
     [](Scene& s) {
       if (s.warp == 0) sync_threads();
     }},
    {"barrier_per_warp_lines", 64,
     [](Scene& s) {  // legal: a line per warp, not per lane
       if (s.warp == 0)
         sync_threads();
       else
         sync_threads();
     }},
    {"named_barrier_producer_consumer", 64,
     [](Scene& s) {
       if (s.warp == 0) {
         s.words[s.t] = 1;
         barrier_arrive(1, 64);
       } else {
         barrier_sync(1, 64);
         s.read(s.t - 32);
       }
     }},
    {"named_barrier_reader_only_arrives", 64,
     [](Scene& s) {
       if (s.warp == 0) {
         s.words[s.t] = 1;
         barrier_sync(1, 64);
       } else {
         barrier_arrive(1, 64);
         s.read(s.t - 32);
       }
     }},
    {"named_barrier_odd_count", 64, [](Scene&) { barrier_sync(1, 40); }},
    {"named_barrier_two_counts", 64, [](Scene& s) { barrier_sync(1, s.warp == 0 ? 64 : 32); }},
    {"named_barrier_bad_id", 32, [](Scene&) { barrier_sync(16, 32); }},
    {"named_barrier_arrive_twice", 64,
     [](Scene& s) {
       if (s.warp == 0)
         for (int i = 0; i < 2; ++i) barrier_arrive(1, 64);
     }},
    {"shuffle_with_missing_lanes", 32,
     [](Scene& s) {
       if (s.t < 16) shfl_xor(1, 1);
     }},
    {"shuffle_of_half_a_warp", 32,
     [](Scene& s) {
       if (s.t < 16) shfl_xor(1, 1, 0xffffu);
     }},
    {"shuffle_from_outside_the_mask", 32,
     [](Scene& s) {
       if (s.t < 16) shfl(1, 20, 0xffffu);
     }},
    {"shuffle_not_in_own_mask", 32,
     [](Scene& s) { shfl(1, 0, s.t < 31 ? 0xffffffffu : 0x7fffffffu); }},
    {"collectives_differ", 32,
     [](Scene& s) {
       if (s.t < 16)
         shfl_xor(1, 1);
       else
         ballot(true);
     }},
    {"ldmatrix_on_two_lines", 32,
     [](Scene& s) {
       uint32_t r[4];
       if (s.t < 16)
         ldmatrix_x4(r, s.words_at);
       else
         ldmatrix_x4(r, s.words_at);
     }},
    {"mma_missing_lanes", 32,
     [](Scene& s) {
       float d[4] = {};
       const uint32_t a[4] = {};
       if (s.t) mma_m16n8k16<Half::kBf16>(d, a, 0, 0);
     }},
    {"early_exit_then_collective_of_the_rest", 64,
     [](Scene& s) {
       if (s.warp == 0) return;
       shfl_xor(1, 1);
     }},
    {"mbarrier", 64,
     [](Scene& s) {
       s.init_barrier(32);
       if (s.warp == 0) {
         s.words[s.t] = 1;
         mbarrier_arrive(s.barrier);
       } else {
         mbarrier_wait(s.barrier, 0);
         s.read(s.t - 32);
       }
     }},
    {"mbarrier_reader_does_not_wait", 64,
     [](Scene& s) {
       s.init_barrier(32);
       if (s.warp == 0) {
         s.words[s.t] = 1;
         mbarrier_arrive(s.barrier);
       } else {
         s.read(s.t - 32);
       }
     }},
    {"mbarrier_previous_parity_returns_at_once", 64,
     [](Scene& s) {
       s.init_barrier(32);
       mbarrier_wait(s.barrier, 1);
     }},
    {"mbarrier_wrong_parity", 32,
     [](Scene& s) {
       s.init_barrier(32);
       mbarrier_arrive(s.barrier);
       mbarrier_wait(s.barrier, 1);
       mbarrier_wait(s.barrier, 0);
       mbarrier_wait(s.barrier, 1);
     }},
    {"mbarrier_polling", 64,
     [](Scene& s) {
       s.init_barrier(32);
       if (s.warp == 0) {
         for (int i = 0; i < 3; ++i) sync_warp();
         mbarrier_arrive(s.barrier);
       } else {
         while (!mbarrier_try_wait(s.barrier, 0)) sync_warp();
       }
     }},
    {"mbarrier_never_initialized", 32, [](Scene& s) { mbarrier_wait(s.barrier, 0); }},
    {"mbarrier_count_too_high", 32,
     [](Scene& s) {
       s.init_barrier(33);
       mbarrier_arrive(s.barrier);
       mbarrier_wait(s.barrier, 0);
     }},
    {"mbarrier_arrival_in_next_phase", 32,
     [](Scene& s) {
       s.init_barrier(31);
       mbarrier_arrive(s.barrier);
     }},
    {"mbarrier_unsynchronized_init", 32,
     [](Scene& s) {
       if (s.t == 0) mbarrier_init(s.barrier, 32);
       mbarrier_arrive(s.barrier);
     }},
    {"mbarrier_overwritten", 32,
     [](Scene& s) {
       s.init_barrier(32);
       if (s.t == 0) sts(s.barrier, U32x2{0, 0});
       sync_warp();
       mbarrier_arrive(s.barrier);
     }},
    {"mbarrier_initialized_twice", 32,
     [](Scene& s) {
       if (s.t == 0)
         for (int i = 0; i < 2; ++i) mbarrier_init(s.barrier, 1);
     }},
    {"mbarrier_initialized_again_after_inval", 32,
     [](Scene& s) {
       if (s.t) return;
       mbarrier_init(s.barrier, 1);
       mbarrier_inval(s.barrier);
       mbarrier_init(s.barrier, 1);
     }},
    {"mbarrier_zero_count", 32, [](Scene& s) { mbarrier_init(s.barrier, 0); }},
    {"mbarrier_misaligned", 32, [](Scene& s) { mbarrier_init(s.barrier + 4, 1); }},
    {"cluster_remote_arrival", 32,
     [](Scene& s) {
       s.init_barrier(2);
       cluster_arrive();
       cluster_wait();
       if (s.t == 0)
         for (uint32_t cta = 0; cta < 2; ++cta) mbarrier_arrive_remote(s.barrier, cta);
       mbarrier_wait(s.barrier, 0);
       cluster_arrive();
       cluster_wait();
     },
     2},
    {"cluster_remote_arrival_before_init_is_known", 32,
     [](Scene& s) {
       s.init_barrier(2);
       if (cluster_rank() == 0) {
         cluster_arrive();
         cluster_wait();
       } else {
         cluster_arrive();
         if (s.t == 0) mbarrier_arrive_remote(s.barrier, 0);
         cluster_wait();
       }
     },
     2},
    {"cluster_peer_exited", 32,
     [](Scene& s) {
       s.init_barrier(1);
       cluster_arrive();
       cluster_wait();
       if (cluster_rank() == 0) return;
       (void)mbarrier_try_wait(s.barrier,
                               0);  // gives up once nobody else can run: the peer has exited
       if (s.t == 0) mbarrier_arrive_remote(s.barrier, 0);
     },
     2},
    {"cluster_peer_may_have_exited", 32,
     [](Scene& s) {  // whatever the schedule
       s.init_barrier(1);
       cluster_arrive();
       cluster_wait();
       if (s.t == 0) mbarrier_arrive_remote(s.barrier, cluster_rank() ^ 1);
     },
     2},
    {"cluster_rank_outside", 32,
     [](Scene& s) {
       s.init_barrier(1);
       if (s.t == 0) mbarrier_arrive_remote(s.barrier, 2);
     },
     2},
    {"cluster_barrier_missed", 32,
     [](Scene& s) {
       if (cluster_rank() == 0 || s.t < 16) cluster_arrive();
       cluster_wait();
     },
     2},
};

}  // namespace swa::test
