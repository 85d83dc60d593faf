// Warp-specialized kernels for the emulator's own tests: a producer warp feeds TMA loads through
// full/empty mbarriers to two consumer warpgroups that run wgmma. Mistakes can be planted; these
// are not kernels of the package.
#pragma once
#include "ws_sm90_attention.cuh"
#include "ws_sm90_gemm.cuh"
