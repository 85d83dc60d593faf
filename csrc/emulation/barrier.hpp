// Block-wide named barriers (bar.sync, bar.arrive) and the cluster barrier.
#pragma once
#include <cstdint>
#include <vector>

#include "source_location.hpp"
#include "vector_clock.hpp"

namespace swa::emu {

struct Thread;

struct NamedBarrier {
  unsigned expected = 0, arrived = 0;
  std::vector<Thread*> waiting;
  Clock clock;
  // Per warp: where it executes the barrier in this phase, and which lanes have.
  std::vector<Loc> warp_loc;
  std::vector<uint32_t> warp_lanes;
};

struct ClusterBarrier {
  size_t arrived = 0;
  uint64_t phase = 0;
  std::vector<uint64_t> awaited_phase;  // per thread of the cluster
  std::vector<Thread*> waiting;
  Clock arriving, completed;
};

enum class Then { kWait, kGoOn };

// Arrives at barrier `id`; num_threads 0 means every thread of the block, exited ones included.
void barrier(int id, unsigned num_threads, Then then, Loc loc);

void cluster_barrier_arrive();
void cluster_barrier_wait(Loc loc);

}  // namespace swa::emu
