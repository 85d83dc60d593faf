// A position in a ring of stages, and the parity of the mbarriers there.
#pragma once
#include "cuda/ptx/platform.cuh"

namespace swa::test {

template <int kStages>
struct Ring {
  int stage;
  uint32_t parity;
  SWA_DEVICE void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

}  // namespace swa::test
