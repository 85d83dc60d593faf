// Arithmetic with its own instruction.
#pragma once
#include <cmath>

#include "cuda/ptx/platform.cuh"
#if SWA_EMULATED
#include "emulation/approximate.hpp"
#endif

namespace swa::ptx {

// 2^x within 2 ulp; subnormal results become 0.
SWA_DEVICE float ex2(float x) {
#if SWA_EMULATED
  return emu::ex2(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// log2(x) within 2^-22: absolutely where x is in (0.5, 2), else relatively.
SWA_DEVICE float lg2(float x) {
#if SWA_EMULATED
  return emu::lg2(x);
#else
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// tanh(x) with a relative error up to 2^-11.
SWA_DEVICE float tanh_approx(float x) {
#if SWA_EMULATED
  return emu::tanh_approx(x);
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
