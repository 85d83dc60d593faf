// New keys and values into their slots: a CTA per token for its keys and one for its values.
#pragma once
#include "cuda/attention/page_pool.cuh"
#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/thread.cuh"
#include "cuda/tile/element.cuh"

namespace swa::cuda::smxx_append_kv {

constexpr int kThreads = 128;

// Whether rows can be moved by the widest units.
struct Wide {
  bool key, value;
};

// One token's heads, kCount elements at once.
template <DType kFrom, DType kTo, int kCount>
SWA_DEVICE void store_heads(const PagePool& pool, const char* rows, int64_t head_stride,
                            int num_heads, int dim, int page, int slot) {
  const ptx::GlobalPointer<const float> scales = pool.scale;
  const int units = dim / kCount;  // per head
  for (int i = int(ptx::thread_idx().x); i < num_heads * units; i += kThreads) {
    const int head = i / units, first = i % units * kCount;
    const auto unit = load_unit<kCount * kSizeOf<kFrom>>(rows + head * head_stride +
                                                         int64_t(first) * kSizeOf<kFrom>);
    float scale = 1.f;
    if constexpr (kTo == DType::kFloat8)
      if (pool.scale) scale = scales[int64_t(page) * num_heads + head];
    char* dst = slot_address(pool, page, slot, head) + first * kSizeOf<kTo>;
    store_unit<kCount * kSizeOf<kTo>>(dst, convert<kFrom, kTo, kCount>(unit, scale));
  }
}

template <DType kFrom, DType kTo>
__global__ void __launch_bounds__(kThreads)
    kernel(const __grid_constant__ AppendParams p, const Wide wide) {
  const int64_t token = ptx::block_idx().x;
  const bool is_key = ptx::block_idx().y == 0;
  const ptx::GlobalPointer<const int64_t> slot_mapping = p.slot_mapping;
  const int64_t mapped = slot_mapping[token];
  const PagePool& pool = is_key ? p.k : p.v;
  const int64_t page = mapped / p.page_size;
  if (mapped < 0 || page >= int64_t(pool.num_device_pages) + pool.num_host_pages) return;
  const int slot = int(mapped % p.page_size);
  const char* rows =
      is_key ? p.key + token * p.key_token_stride : p.value + token * p.value_token_stride;
  const int64_t head_stride = is_key ? p.key_head_stride : p.value_head_stride;
  const int dim = is_key ? p.head_dim : p.v_head_dim;
  if (is_key ? wide.key : wide.value)
    store_heads<kFrom, kTo, kElementsAtOnce<kFrom, kTo>>(pool, rows, head_stride, p.num_kv_heads,
                                                         dim, int(page), slot);
  else
    store_heads<kFrom, kTo, 1>(pool, rows, head_stride, p.num_kv_heads, dim, int(page), slot);
}

template <DType kFrom, DType kTo>
ptx::Error launch(const AppendParams& p, const Wide& wide, ptx::Stream stream) {
  return ptx::launch({ptx::Dim3(unsigned(p.num_tokens), 2), kThreads, 0, 1, stream},
                     kernel<kFrom, kTo>, p, wide);
}

}  // namespace swa::cuda::smxx_append_kv
