#include "cuda/kernels/dispatch.h"
#include "cuda/kernels/kernels.h"
#include "cuda/kernels/smxx_merge_states.cuh"

namespace swa::cuda {

int merge_states(const MergeParams& p, Stream stream) {
  if (p.rows == 0 || p.num_heads == 0) return 0;
  const auto is_wide = [](const Partial& part) {
    return all_aligned(kWidestUnit, part.out, {part.out_row_stride, part.out_head_stride});
  };
  const bool wide = is_wide(p.a) && is_wide(p.b) &&
                    all_aligned(kWidestUnit, p.out, {int64_t(p.dim) * size_of(p.dtype)});
  return with_float(p.dtype, [&](auto dtype) {
    return int(smxx_merge_states::launch<dtype()>(p, wide, static_cast<ptx::Stream>(stream)));
  });
}

}  // namespace swa::cuda
