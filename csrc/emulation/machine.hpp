// The state of the emulated hardware: threads, warps, blocks, and the cluster of blocks that one
// host thread runs.
#pragma once
#include <csetjmp>
#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "async_engine.hpp"
#include "barrier.hpp"
#include "bulk_copy.hpp"
#include "cluster.hpp"
#include "collective.hpp"
#include "config.hpp"
#include "counters.hpp"
#include "cp_async.hpp"
#include "fiber.hpp"
#include "launch.hpp"
#include "mbarrier.hpp"
#include "memory_map.hpp"
#include "report.hpp"
#include "shadow.hpp"
#include "shared_memory.hpp"
#include "vector_clock.hpp"
#include "wgmma.hpp"

namespace swa::emu {

struct Block;
struct Warp;

enum class State : uint8_t {
  kReady,
  kInCollective,
  kAtBarrier,
  kAtMbarrier,
  kAtClusterBarrier,
  kDone
};

struct Thread {
  Fiber fiber;
  Dim3 idx{0, 0, 0};
  Block* block = nullptr;
  Warp* warp = nullptr;
  int lane = 0;
  int linear = 0;  // in the block
  int entity = 0;  // in the vector clocks of the cluster
  State state = State::kReady;

  // What it waits for, for the deadlock report.
  Loc waits_at;
  const char* waits_in = "";
  uint64_t waits_for = 0, waits_detail = 0;

  std::vector<CpAsync> cp_async;  // issued, not yet waited for
  uint32_t cp_async_group = 0;
  uint32_t bulk_group = 0;
  uint32_t fenced_clock =
      0;  // own clock up to which generic writes are visible to the asynchronous proxy
  bool waited_for_grid = false;
  uint32_t epoch =
      0;  // times it met the whole warp or a barrier; groups lanes into requests (counters)
};

struct Warp {
  Block* block = nullptr;
  int id = 0;         // in the block
  int global_id = 0;  // in the cluster
  uint32_t full_mask = 0, ready = 0;
  Thread* threads = nullptr;
  Collective collectives[8];
  WgmmaState wgmma;
  RequestGrouper requests;
  // Elementwise minimum of the lanes' clocks: what every lane knows, hence what a warp-wide
  // operation may rely on.
  std::vector<uint32_t> common_clock;
  bool common_clock_stale = true;

  Thread& lane(int i) { return threads[i]; }
};

struct Block {
  Dim3 idx{0, 0, 0};
  int rank = 0;  // in the cluster
  unsigned num_threads = 0, live = 0;
  std::vector<Warp*> warps;
  uint8_t* smem = nullptr;
  size_t smem_bytes = 0;
  NamedBarrier barriers[16];
  std::unordered_map<uint32_t, Mbarrier> mbarriers;
  std::vector<RemoteAccess> remote_accesses;
  Shadow shadow;
};

// One cluster at a time. Reused for all clusters that a host thread gets, and between launches.
struct Machine {
  Session* session = nullptr;
  Launch* launch = nullptr;
  Config config;

  Fiber main;  // the host thread
  Thread* current = nullptr;
  StackSlab stacks;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Block> blocks;
  std::vector<std::unique_ptr<SharedArena>> arenas;

  size_t current_warp = 0;
  unsigned live = 0;      // threads that have not exited
  uint64_t progress = 0;  // grows when something happens that a waiting thread may be waiting for
  bool abandoned = false;
  uint64_t random_state = 1;

  Clocks clocks;
  ClusterBarrier cluster_barrier;
  std::vector<AsyncOp> in_flight;
  std::vector<BulkStore> bulk_stores;
  Counts counts;
  const Buffer* last_buffer = nullptr;
  sigjmp_buf fault;

  uint64_t random() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
  }
  // Whether the operation being issued lands at once: always, never, or one time in `odds`.
  bool lands_now(uint64_t odds) {
    return config.async == Async::kEager ||
           (config.async == Async::kRandom && random() % odds == 0);
  }
};

extern thread_local Machine* current_machine;
inline Machine& machine() { return *current_machine; }
inline Thread& self() { return *current_machine->current; }

// "block (0,0,1) thread 37 (warp 1 lane 5)"
std::string name_of(const Thread& thread);

}  // namespace swa::emu
