#include "cuda/kernels/dispatch.h"
#include "cuda/kernels/kernels.h"
#include "cuda/kernels/smxx_append_kv.cuh"

namespace swa::cuda {

namespace {

// Whether every row of the new tokens and of the pools can be moved by `count` elements at once.
bool all_wide(int count, const char* rows, int64_t token_stride, int64_t head_stride, int dim,
              DType from, const PagePool& pool, DType to) {
  return dim % count == 0 &&
         all_aligned(count * size_of(from), rows, {token_stride, head_stride}) &&
         all_aligned(count * size_of(to), pool.device,
                     {pool.device_page_stride, pool.device_slot_stride, pool.device_head_stride}) &&
         all_aligned(count * size_of(to), pool.host,
                     {pool.host_page_stride, pool.host_slot_stride, pool.host_head_stride});
}

}  // namespace

int append_kv(const AppendParams& p, Stream stream) {
  if (p.num_tokens == 0) return 0;
  return with_float(p.dtype, [&](auto from) {
    return with_dtype(p.kv_dtype, [&](auto to) {
      constexpr int kCount = kElementsAtOnce<from(), to()>;
      const smxx_append_kv::Wide wide = {
          all_wide(kCount, p.key, p.key_token_stride, p.key_head_stride, p.head_dim, p.dtype, p.k,
                   p.kv_dtype),
          all_wide(kCount, p.value, p.value_token_stride, p.value_head_stride, p.v_head_dim,
                   p.dtype, p.v, p.kv_dtype)};
      return int(smxx_append_kv::launch<from(), to()>(p, wide, static_cast<ptx::Stream>(stream)));
    });
  });
}

}  // namespace swa::cuda
