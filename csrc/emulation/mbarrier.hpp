// mbarriers. Their state is kept outside shared memory; the eight bytes hold a tag, so that a
// kernel that overwrites a barrier is caught.
#pragma once
#include <cstdint>
#include <vector>

#include "source_location.hpp"
#include "vector_clock.hpp"

namespace swa::emu {

struct Block;
struct Thread;

struct Mbarrier {
  uint32_t address = 0;
  uint32_t expected = 0, pending = 0;  // arrivals of a phase, and those still missing
  int64_t pending_bytes = 0;           // expect_tx minus complete_tx
  uint64_t phase = 0;
  Clock arriving, completed;
  std::vector<Thread*> waiting;
  int initializer = -1;  // entity
  uint32_t init_clock = 0;
  bool init_fenced =
      false;  // its initializer has executed a fence that TMA needs to see the barrier
  Loc loc;
};

void mbarrier_init(uint32_t address, uint32_t count, Loc loc);
void mbarrier_inval(uint32_t address, Loc loc);
// Raises the expected bytes of the phase, then arrives `count` times.
void mbarrier_arrive(uint32_t address, uint32_t count, uint32_t expect_bytes, Loc loc);
// Blocks until the phase with this parity is complete; false: timed out, which may happen at any
// time.
bool mbarrier_try_wait(uint32_t address, uint32_t parity, Loc loc);

// Finds an initialized barrier and checks that the running thread may know of it; else reports or
// stops the launch.
Mbarrier& check_mbarrier(uint32_t address, Loc loc);
// Arrivals that the hardware makes when something asynchronous has landed.
void mbarrier_complete_bytes(Block& block, uint32_t address, uint32_t bytes, const Clock& clock);
void mbarrier_arrive_detached(Block& block, uint32_t address, const Clock& clock, Loc loc);

// Makes the running thread's earlier generic writes, and mbarriers it initialized, visible to the
// asynchronous proxy.
void fence_proxy_async();
// Makes mbarriers that the running thread initialized visible to the cluster and the asynchronous
// proxy.
void fence_mbarrier_init();

}  // namespace swa::emu
