// Many pages of many layers between two pools in one launch. CTAs walk over pieces of equal size,
// so that small and large pages, one layer and sixty, fill a card alike.
#pragma once
#include <cmath>

#include "cuda/ptx/launch.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/shuffle.cuh"
#include "cuda/ptx/sync.cuh"
#include "cuda/ptx/thread.cuh"
#include "cuda/tile/element.cuh"

namespace swa::cuda::smxx_copy_pages {

constexpr int kThreads = 256;
constexpr int kInFlight = 4;  // units a thread loads before it stores the first
constexpr float kFloat8Max = 448.f, kSmallestScale = 1e-12f;

// A page as rows of consecutive elements: heads [0] and slots [1], or rows merged from them.
struct Rows {
  int64_t src_stride[2], dst_stride[2];
  int32_t count[2];
  int32_t units;  // in a row
};

// Source and target page of one layer and one pair; null when the pair is to be skipped.
struct PagePair {
  const char* src;
  char* dst;
  const float* src_scale;
  float* dst_scale;
};

SWA_DEVICE PagePair page_pair(const CopyParams& p, int64_t index) {
  const int64_t layer = index / p.num_pairs, pair = index % p.num_pairs;
  const ptx::GlobalPointer<const int64_t> src_pages = p.src_pages, dst_pages = p.dst_pages;
  const int64_t from = src_pages[pair], to = dst_pages[pair];
  if (from < 0 || to < 0 || from >= p.num_src_pages || to >= p.num_dst_pages) return {};
  return {p.src + layer * p.src_stride[0] + from * p.src_stride[1],
          p.dst + layer * p.dst_stride[0] + to * p.dst_stride[1],
          p.src_scale ? p.src_scale + layer * p.src_scale_stride[0] + from * p.src_scale_stride[1]
                      : nullptr,
          p.dst_scale ? p.dst_scale + layer * p.dst_scale_stride[0] + to * p.dst_scale_stride[1]
                      : nullptr};
}

// Bits between equal dtypes, kFrom == kTo standing for any dtype of its size; or from float8.
template <DType kFrom, DType kTo, int kCount>
__global__ void __launch_bounds__(kThreads)
    copy_kernel(const __grid_constant__ CopyParams p, const __grid_constant__ Rows rows) {
  constexpr int kInBytes = kCount * kSizeOf<kFrom>, kOutBytes = kCount * kSizeOf<kTo>;
  const int units = rows.count[0] * rows.count[1] * rows.units;  // of a page
  const int thread = int(ptx::thread_idx().x);
  const int64_t chunks = (units + kThreads * kInFlight - 1) / (kThreads * kInFlight);
  const int64_t pieces = chunks * p.num_pairs * p.num_layers;
  for (int64_t piece = ptx::block_idx().x; piece < pieces; piece += ptx::grid_dim().x) {
    const PagePair page = page_pair(p, piece / chunks);
    if (!page.src) continue;
    const int first = int(piece % chunks) * kThreads * kInFlight + thread;
    const ptx::GlobalPointer<const float> src_scale = page.src_scale;
    Unit<kInBytes> in[kInFlight];
    SWA_UNROLL
    for (int n = 0; n < kInFlight; ++n) {
      const int unit = first + n * kThreads;
      if (unit >= units) break;
      const int row = unit / rows.units;
      in[n] = load_unit<kInBytes>(page.src + row % rows.count[0] * rows.src_stride[0] +
                                  row / rows.count[0] * rows.src_stride[1] +
                                  unit % rows.units * kInBytes);
    }
    SWA_UNROLL
    for (int n = 0; n < kInFlight; ++n) {
      const int unit = first + n * kThreads;
      if (unit >= units) break;
      const int row = unit / rows.units, head = row % rows.count[0];
      float scale = 1.f;
      if constexpr (kFrom != kTo) scale = src_scale[head];
      store_unit<kOutBytes>(page.dst + head * rows.dst_stride[0] +
                                row / rows.count[0] * rows.dst_stride[1] +
                                unit % rows.units * kOutBytes,
                            convert<kFrom, kTo, kCount>(in[n], scale));
    }
    if (page.dst_scale && piece % chunks == 0) {
      const ptx::GlobalPointer<float> dst_scale = page.dst_scale;
      for (int head = thread; head < p.num_kv_heads; head += kThreads)
        dst_scale[head] = src_scale[head];
    }
  }
}

struct SharedStorage {
  float warp_max[kThreads / 32];
  alignas(16) unsigned char staged[];  // what was read to find the largest, if it has room
};

// The largest of all threads' values; a barrier before anyone gets it and one after.
SWA_DEVICE float block_max(SharedStorage& smem, float x) {
  SWA_UNROLL
  for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, ptx::shfl_xor(x, lanes));
  const ptx::SharedPointer<float> warp_max = smem.warp_max;
  if (ptx::lane_id() == 0) warp_max[ptx::warp_id()] = x;
  ptx::sync_threads();
  SWA_UNROLL
  for (int warp = 0; warp < kThreads / 32; ++warp) x = fmaxf(x, warp_max[warp]);
  ptx::sync_threads();
  return x;
}

// To float8: a CTA per layer, page and head, whose slots share a scale. NaN does not count for it.
template <DType kFrom, int kCount>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const __grid_constant__ CopyParams p, const __grid_constant__ Rows rows,
                    const bool stage) {
  using From = Elements<kFrom, kCount>;
  constexpr bool kCanStage = From::kBytes == kWidestUnit;
  SharedStorage& smem = ptx::shared_storage<SharedStorage>();
  const uint32_t staged = ptx::smem_u32(smem.staged);
  const int units = p.page_size * rows.units;  // of one head
  const int64_t pieces = int64_t(p.num_kv_heads) * p.num_pairs * p.num_layers;
  for (int64_t piece = ptx::block_idx().x; piece < pieces; piece += ptx::grid_dim().x) {
    const PagePair page = page_pair(p, piece / p.num_kv_heads);
    if (!page.src) continue;
    const int head = int(piece % p.num_kv_heads);
    const char* src = page.src + head * rows.src_stride[0];
    char* dst = page.dst + head * rows.dst_stride[0];
    float largest = 0.f;
    for (int unit = int(ptx::thread_idx().x); unit < units; unit += kThreads) {
      const auto in = load_unit<From::kBytes>(src + unit / rows.units * rows.src_stride[1] +
                                              unit % rows.units * From::kBytes);
      SWA_UNROLL
      for (int i = 0; i < kCount; ++i) largest = fmaxf(largest, fabsf(From::get(in, i)));
      if constexpr (kCanStage)
        if (stage) ptx::sts(staged + uint32_t(unit * From::kBytes), in);
    }
    const float scale = fmaxf(block_max(smem, largest) / kFloat8Max, kSmallestScale);
    for (int unit = int(ptx::thread_idx().x); unit < units; unit += kThreads) {
      typename From::Bits in;
      bool again = true;
      if constexpr (kCanStage) {
        again = !stage;
        if (stage) in = ptx::lds<typename From::Bits>(staged + uint32_t(unit * From::kBytes));
      }
      if (again)
        in = load_unit<From::kBytes>(src + unit / rows.units * rows.src_stride[1] +
                                     unit % rows.units * From::kBytes);
      store_unit<kCount>(dst + unit / rows.units * rows.dst_stride[1] + unit % rows.units * kCount,
                         convert<kFrom, DType::kFloat8, kCount>(in, scale));
    }
    const ptx::GlobalPointer<float> dst_scale = page.dst_scale;
    if (ptx::thread_idx().x == 0) dst_scale[head] = scale;
  }
}

inline unsigned grid_for(int64_t pieces, const Device& device) {
  constexpr int kPerSm = 2048 / kThreads;
  return unsigned(ptx::min(pieces, int64_t(device.num_sms) * kPerSm));
}

template <DType kFrom, DType kTo, int kCount>
ptx::Error launch_copy(const CopyParams& p, const Rows& rows, const Device& device,
                       ptx::Stream stream) {
  const int64_t units = int64_t(rows.count[0]) * rows.count[1] * rows.units;
  const int64_t chunks = (units + kThreads * kInFlight - 1) / (kThreads * kInFlight);
  const unsigned blocks = grid_for(chunks * p.num_pairs * p.num_layers, device);
  return ptx::launch({blocks, kThreads, 0, 1, stream}, copy_kernel<kFrom, kTo, kCount>, p, rows);
}

template <DType kFrom, int kCount>
ptx::Error launch_quantize(const CopyParams& p, const Rows& rows, const Device& device,
                           ptx::Stream stream) {
  const int64_t page_bytes = int64_t(p.page_size) * rows.units * kCount * size_of(kFrom);
  const int64_t wanted = int64_t(sizeof(SharedStorage)) + page_bytes;
  const bool stage = kCount > 1 && wanted <= device.max_smem_bytes;
  const unsigned blocks = grid_for(int64_t(p.num_kv_heads) * p.num_pairs * p.num_layers, device);
  return ptx::launch({blocks, kThreads, stage ? size_t(wanted) : sizeof(SharedStorage), 1, stream},
                     quantize_kernel<kFrom, kCount>, p, rows, stage);
}

}  // namespace swa::cuda::smxx_copy_pages
