// wgmma: asynchronous warpgroup matrix multiply. Each warp is emulated on its own: it computes its
// 16 of the 64 rows.
//
// From issue to wgmma.wait_group the accumulator registers hold a poison pattern that must still be
// there at completion.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "float16.hpp"
#include "source_location.hpp"
#include "wgmma_descriptor.hpp"

namespace swa::emu {

// Accumulators of a warp that operations in flight work on.
struct WgmmaAccumulator {
  float* registers[32];  // per lane
  int per_lane;
  std::vector<float> values;  // [32][per_lane]
  int pending = 0;            // operations in flight
  Loc loc;
};

// What the instruction says, equal in all lanes.
struct WgmmaShape {
  int n;
  Half type;
  Major b_major;
  bool a_in_registers;
};

struct WgmmaOp {
  WgmmaShape shape;
  uint64_t a_descriptor, b_descriptor;
  bool accumulate;  // scale-d
  uint32_t a_registers[32][4];
  std::shared_ptr<WgmmaAccumulator> accumulator;
  uint32_t group, clock;
  bool computed = false;
  Loc loc;
};

struct WgmmaState {          // of a warp
  std::vector<WgmmaOp> ops;  // issued, not waited for
  std::vector<std::shared_ptr<WgmmaAccumulator>> accumulators;
  uint32_t group = 0, clock = 0;
  bool fenced = false;
  uint64_t sequence_hash = 0;  // of everything issued: the warps of a warpgroup must agree
  uint32_t num_issued = 0;
};

// a: 4 registers per lane, or nullptr when A is in shared memory (K-major).
void wgmma(WgmmaShape shape, float* d, const uint32_t* a, uint64_t a_descriptor,
           uint64_t b_descriptor, bool accumulate, Loc loc);
void wgmma_fence(Loc loc);
void wgmma_commit(Loc loc);
void wgmma_wait(uint32_t n, Loc loc);

// At the end of a cluster: everything waited for, and the warps of a warpgroup did the same.
void check_wgmma_at_exit();

}  // namespace swa::emu
