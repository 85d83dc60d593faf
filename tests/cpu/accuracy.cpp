// Prints the largest relative errors of the CPU kernels' exponential and tanh, against the C
// library's in double: "exp tanh". Compiled for one instruction set by test_accuracy.py.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "cpu/simd.h"

using namespace swa::cpu::SWA_ISA;

// Every `step`-th float from `first`, which is negative, to 0: `body` gets kLanes at a time.
template <class Body>
void for_floats(float first, uint32_t step, Body body) {
  uint32_t bits;
  std::memcpy(&bits, &first, 4);
  while (bits >= 0x80000000u + step * kLanes) {
    Float x;
    for (int i = 0; i < kLanes; ++i, bits -= step) {
      float value;
      std::memcpy(&value, &bits, 4);
      x[i] = value;
    }
    body(x);
  }
}

int main() {
  double exp_error = 0, tanh_error = 0;
  // 87: below e^-87 the kernels' exponential is 0.
  for_floats(-87.0f, 521, [&](Float x) {
    const Float y = exp_negative(x);
    for (int i = 0; i < kLanes; ++i) {
      const double exact = std::exp(double(x[i]));
      exp_error = std::max(exp_error, std::fabs(y[i] - exact) / exact);
    }
  });
  for_floats(-30.0f, 521, [&](Float x) {
    const Float y = swa::cpu::SWA_ISA::tanh(x);
    for (int i = 0; i < kLanes; ++i) {
      const double exact = std::tanh(double(x[i]));
      if (std::fabs(exact) > 1e-30)
        tanh_error = std::max(tanh_error, std::fabs(y[i] - exact) / std::fabs(exact));
    }
  });
  std::printf("%.17g %.17g\n", exp_error, tanh_error);
}
