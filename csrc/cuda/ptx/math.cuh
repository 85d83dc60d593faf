// Arithmetic with its own instruction.
#pragma once
#include <cmath>

#include "cuda/ptx/platform.cuh"
#if SWA_EMULATED
#include "emulation/access.hpp"
#endif

namespace swa::ptx {

// 2^x; subnormal results become 0. In emulation exact to fp32 rounding and counted, on a card
// within 2 ulp.
SWA_DEVICE float ex2(float x) {
#if SWA_EMULATED
  return emu::ex2(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// log2(x)
SWA_DEVICE float lg2(float x) {
#if SWA_EMULATED
  return std::log2(x);
#else
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// tanh(x), on a card with a relative error up to 2^-11.
SWA_DEVICE float tanh_approx(float x) {
#if SWA_EMULATED
  return std::tanh(x);
#else
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

template <class T>
SWA_ANYWHERE constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
SWA_ANYWHERE constexpr T max(T a, T b) {
  return a < b ? b : a;
}

}  // namespace swa::ptx
