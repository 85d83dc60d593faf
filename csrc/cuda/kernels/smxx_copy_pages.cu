#include "cuda/kernels/dispatch.h"
#include "cuda/kernels/kernels.h"
#include "cuda/kernels/smxx_copy_pages.cuh"

namespace swa::cuda {

namespace {

using smxx_copy_pages::Rows;

// Rows of `units` units.
Rows rows_of(const CopyParams& p, int units) {
  return {{p.src_stride[3], p.src_stride[2]},
          {p.dst_stride[3], p.dst_stride[2]},
          {p.num_kv_heads, p.page_size},
          units};
}

bool all_wide(const CopyParams& p, int count) {
  const int64_t *src = p.src_stride, *dst = p.dst_stride;
  return p.dim % count == 0 &&
         all_aligned(count * size_of(p.src_dtype), p.src, {src[0], src[1], src[2], src[3]}) &&
         all_aligned(count * size_of(p.dst_dtype), p.dst, {dst[0], dst[1], dst[2], dst[3]});
}

// Takes dimension i into the row if its rows follow each other in both pools.
void merge(Rows& rows, int i, int64_t& row_bytes) {
  if (rows.count[i] > 1 && (rows.src_stride[i] != row_bytes || rows.dst_stride[i] != row_bytes))
    return;
  row_bytes *= rows.count[i];
  rows.count[i] = 1;
}

template <DType kSameSize, int kCount>
int copy_bits(const CopyParams& p, Rows rows, int64_t row_bytes, const Device& device,
              Stream stream) {
  rows.units = int(row_bytes / (kCount * size_of(kSameSize)));
  return int(smxx_copy_pages::launch_copy<kSameSize, kSameSize, kCount>(
      p, rows, device, static_cast<ptx::Stream>(stream)));
}

// Equal dtypes: rows as long and accesses as wide as memory allows.
int copy(const CopyParams& p, const Device& device, Stream stream) {
  Rows rows = rows_of(p, 0);
  int64_t row_bytes = int64_t(p.dim) * size_of(p.src_dtype);
  merge(rows, 0, row_bytes);
  merge(rows, 1, row_bytes);
  merge(rows, 0, row_bytes);  // heads around slots
  const int64_t *src = rows.src_stride, *dst = rows.dst_stride;
  const auto fits = [&](int bytes) {
    return all_aligned(bytes, p.src, {p.src_stride[0], p.src_stride[1], src[0], src[1]}) &&
           all_aligned(bytes, p.dst, {p.dst_stride[0], p.dst_stride[1], dst[0], dst[1]}) &&
           row_bytes % bytes == 0;
  };
  if (fits(16)) return copy_bits<DType::kFloat32, 4>(p, rows, row_bytes, device, stream);
  if (fits(4)) return copy_bits<DType::kFloat32, 1>(p, rows, row_bytes, device, stream);
  if (fits(2)) return copy_bits<DType::kFloat16, 1>(p, rows, row_bytes, device, stream);
  return copy_bits<DType::kFloat8, 1>(p, rows, row_bytes, device, stream);
}

int quantize(const CopyParams& p, const Device& device, Stream stream) {
  return with_float(p.src_dtype, [&](auto from) {
    constexpr int kCount = kElementsAtOnce<from()>;
    const auto on = static_cast<ptx::Stream>(stream);
    return int(all_wide(p, kCount)
                   ? smxx_copy_pages::launch_quantize<from(), kCount>(p, rows_of(p, p.dim / kCount),
                                                                      device, on)
                   : smxx_copy_pages::launch_quantize<from(), 1>(p, rows_of(p, p.dim), device, on));
  });
}

int dequantize(const CopyParams& p, const Device& device, Stream stream) {
  return with_float(p.dst_dtype, [&](auto to) {
    constexpr int kCount = kElementsAtOnce<to()>;
    const auto on = static_cast<ptx::Stream>(stream);
    return int(all_wide(p, kCount) ? smxx_copy_pages::launch_copy<DType::kFloat8, to(), kCount>(
                                         p, rows_of(p, p.dim / kCount), device, on)
                                   : smxx_copy_pages::launch_copy<DType::kFloat8, to(), 1>(
                                         p, rows_of(p, p.dim), device, on));
  });
}

}  // namespace

int copy_pages(const CopyParams& p, const Device& device, Stream stream) {
  if (p.num_layers == 0 || p.num_pairs == 0 || p.page_size == 0 || p.num_kv_heads == 0 ||
      p.dim == 0)
    return 0;
  if (p.src_dtype == p.dst_dtype) return copy(p, device, stream);
  return p.dst_dtype == DType::kFloat8 ? quantize(p, device, stream)
                                       : dequantize(p, device, stream);
}

}  // namespace swa::cuda
