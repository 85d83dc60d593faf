// Tensor maps: descriptions of global tensors for TMA, made on the host, passed as `const
// __grid_constant__ TensorMap`.
#pragma once
#include <stdexcept>
#include <string>

#include "cuda/ptx/platform.cuh"
#include "cuda/ptx/swizzle.cuh"
#if !SWA_EMULATED
#include <cuda.h>
#include <cuda_runtime.h>
#endif

namespace swa::ptx {

#if SWA_EMULATED
using TensorMap = emu::TensorMap;
#else
using TensorMap = CUtensorMap;
#endif

enum class ElementType { kBf16, kFp16, kByte };

struct TensorMapSpec {
  const void* base;
  ElementType type;
  int rank;                  // 1..5; dimension 0 is contiguous
  uint64_t size[5];          // elements
  uint64_t stride_bytes[4];  // of dimensions 1..4
  uint32_t box[5];           // elements per load
  Swizzle swizzle;
};

// Throws std::runtime_error if the driver (or the emulator) refuses the description.
inline TensorMap encode_tensor_map(const TensorMapSpec& spec) {
  TensorMap map;
#if SWA_EMULATED
  const int element_bytes = spec.type == ElementType::kByte ? 1 : 2;
  const std::string error =
      emu::encode_tensor_map(map, element_bytes, spec.rank, spec.base, spec.size, spec.stride_bytes,
                             spec.box, spec.swizzle);
  if (!error.empty()) throw std::runtime_error("cuTensorMapEncodeTiled: " + error);
#else
  // Through the runtime, so that the library does not link against the driver.
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                     &found);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  if (!encode) throw std::runtime_error("the CUDA driver has no cuTensorMapEncodeTiled");
  const CUtensorMapDataType type =
      spec.type == ElementType::kBf16   ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
      : spec.type == ElementType::kFp16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                        : CU_TENSOR_MAP_DATA_TYPE_UINT8;
  cuuint64_t size[5], stride_bytes[4];
  cuuint32_t box[5], element_strides[5] = {1, 1, 1, 1, 1};
  for (int i = 0; i < 5; ++i) {
    size[i] = spec.size[i];
    box[i] = spec.box[i];
    if (i < 4) stride_bytes[i] = spec.stride_bytes[i];
  }
  const CUresult error =
      encode(&map, type, cuuint32_t(spec.rank), const_cast<void*>(spec.base), size, stride_bytes,
             box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CUtensorMapSwizzle(spec.swizzle),
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(int(error)));
#endif
  return map;
}

}  // namespace swa::ptx
