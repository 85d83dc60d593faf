// Tensor maps of queries and device pages: what TMA must know of them, made on the host.
#pragma once
#include "cuda/kernels/dispatch.h"
#include "cuda/params.h"
#include "cuda/ptx/tensor_map.cuh"
#include "cuda/tile/kv_tile.cuh"

namespace swa::cuda {

// Keys that one TMA load brings, at most `most`: pages are whole boxes, or the other way round. 0:
// neither.
inline int keys_per_box(int page_size, int most = 64) {
  constexpr int kSwizzleRows = 8;  // boxes start where the swizzle pattern does
  if (page_size % most == 0) return most;
  return page_size % kSwizzleRows == 0 && most % page_size == 0 ? page_size : 0;
}

inline bool mappable(const PagePool& pool) {
  return pool.num_device_pages == 0 ||
         all_aligned(16, pool.device,
                     {pool.device_page_stride, pool.device_slot_stride, pool.device_head_stride});
}

// Whether TMA can load the queries and the device pages of this case.
inline bool mappable(const AttentionParams& p) {
  return keys_per_box(p.page_size) > 0 && mappable(p.k) && mappable(p.v) &&
         all_aligned(16, p.q, {p.q_token_stride, p.q_head_stride});
}

inline ptx::ElementType element_type(DType dtype) {
  if (dtype == DType::kFloat8) return ptx::ElementType::kByte;
  return dtype == DType::kBFloat16 ? ptx::ElementType::kBf16 : ptx::ElementType::kFp16;
}

// Coordinates: element, KV head, slot, page. A box is part of a panel.
inline ptx::TensorMap map_pages(const AttentionParams& p, const PagePool& pool, int dim,
                                int keys_per_box) {
  return ptx::encode_tensor_map(
      {pool.device,
       element_type(p.kv_dtype),
       4,
       {uint64_t(dim), uint64_t(p.num_kv_heads), uint64_t(p.page_size),
        uint64_t(pool.num_device_pages)},
       {uint64_t(pool.device_head_stride), uint64_t(pool.device_slot_stride),
        uint64_t(pool.device_page_stride)},
       {kPanelElements, 1, uint32_t(keys_per_box), 1},
       p.kv_dtype == DType::kFloat8 ? KvPanel<1>::kSwizzle : KvPanel<2>::kSwizzle});
}

// Whether a warp's 16 rows of (token, head of the group) are a box of the output, and TMA can store
// it.
inline bool stores_boxes(const AttentionParams& p) {
  constexpr int kRows = 16;
  return (kRows % p.group_size == 0 || p.group_size % kRows == 0) &&
         all_aligned(16, p.out, {p.out_token_stride, p.out_head_stride});
}

// Coordinates: element, query head, row of out. A box is a warp's rows.
inline ptx::TensorMap map_outputs(const AttentionParams& p) {
  const int heads = ptx::min(p.group_size, 16);
  return ptx::encode_tensor_map(
      {p.out,
       element_type(p.dtype),
       3,
       {uint64_t(p.v_head_dim), uint64_t(p.num_kv_heads) * p.group_size, uint64_t(p.total_q)},
       {uint64_t(p.out_head_stride), uint64_t(p.out_token_stride)},
       {kPanelElements, uint32_t(heads), uint32_t(16 / heads)},
       ptx::Swizzle::k128});
}

// Coordinates: element, query head, row of q. A box has all heads of a group.
inline ptx::TensorMap map_queries(const AttentionParams& p, int tokens_per_box) {
  return ptx::encode_tensor_map(
      {p.q,
       element_type(p.dtype),
       3,
       {uint64_t(p.head_dim), uint64_t(p.num_kv_heads) * p.group_size, uint64_t(p.total_q)},
       {uint64_t(p.q_head_stride), uint64_t(p.q_token_stride)},
       {kPanelElements, uint32_t(p.group_size), uint32_t(tokens_per_box)},
       ptx::Swizzle::k128});
}

}  // namespace swa::cuda
