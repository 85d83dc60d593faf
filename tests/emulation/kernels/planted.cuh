// Mistakes planted in the test kernels: PLANTED(n) is true when a test asks the emulator for
// mistake n, never on a card.
#pragma once
#include "cuda/ptx/platform.cuh"
#if SWA_EMULATED
#include "emulation/planted.hpp"
#define PLANTED(n) (::swa::emu::planted::current == (n))
#else
#define PLANTED(n) false
#endif
