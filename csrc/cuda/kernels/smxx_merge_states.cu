#include "cuda/kernels/dispatch.h"
#include "cuda/kernels/kernels.h"
#include "cuda/kernels/smxx_merge_states.cuh"

namespace swa::cuda {

int merge_states(const MergeParams& p, Stream stream) {
  if (p.rows == 0 || p.num_heads == 0) return 0;
  const int64_t row_bytes = int64_t(p.dim) * size_of(p.dtype);
  const bool wide = all_aligned(kWidestUnit, p.out_a, {row_bytes}) &&
                    all_aligned(kWidestUnit, p.out_b, {}) && all_aligned(kWidestUnit, p.out, {});
  return with_float(p.dtype, [&](auto dtype) {
    return int(smxx_merge_states::launch<dtype()>(p, wide, static_cast<ptx::Stream>(stream)));
  });
}

}  // namespace swa::cuda
