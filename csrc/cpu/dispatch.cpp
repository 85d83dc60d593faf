#include "cpu/dispatch.h"

#include <cstdlib>
#include <cstring>

namespace swa::cpu {

#define SWA_DECLARE(level)    \
  namespace level {           \
  extern const Kernels table; \
  }

SWA_DECLARE(baseline)
#ifdef SWA_HAVE_AVX2
SWA_DECLARE(avx2)
#endif
#ifdef SWA_HAVE_AVX512
SWA_DECLARE(avx512)
#endif
#ifdef SWA_HAVE_AVX512_BF16
SWA_DECLARE(avx512_bf16)
#endif

static const Kernels& choose() {
  const Kernels* best = &baseline::table;
  const char* cap = std::getenv("SWA_ATTN_CPU_ISA");
  // Levels go from low to high; once the cap has been reached nothing better is taken.
  auto capped = [&] { return cap && std::strcmp(best->level, cap) == 0; };
#ifdef SWA_HAVE_AVX2
  if (!capped() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    best = &avx2::table;
  }
#endif
#ifdef SWA_HAVE_AVX512
  if (!capped() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    best = &avx512::table;
#ifdef SWA_HAVE_AVX512_BF16
    if (!capped() && __builtin_cpu_supports("avx512bf16")) best = &avx512_bf16::table;
#endif
  }
#endif
  return *best;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace swa::cpu
