// The prefill kernels of one pair of head dimensions, for all dtypes: what a translation unit of
// its own instantiates, so that the build is parallel.
#pragma once
#include "cuda/kernels/kernels.h"
#include "cuda/kernels/sm80_prefill.cuh"
#include "cuda/kernels/sm80_swa_prefill.cuh"
#include "cuda/kernels/sm90_prefill.cuh"
#include "cuda/kernels/sm90_swa_prefill.cuh"
#include "cuda/kernels/with_traits.cuh"

namespace swa::cuda {

template <class Traits>
int prefill_traits(const AttentionParams& p, const Device& device, Stream stream) {
  if constexpr (sm90_swa_prefill::kCompiled<Traits>) {
    const auto ring = sm90_swa_prefill::schedule_for<Traits>(p, device);
    if (ring.num_slots > 0)
      return int(sm90_swa_prefill::launch<Traits>(p, ring, static_cast<ptx::Stream>(stream)));
  }
  if constexpr (sm90_prefill::kCompiled<Traits>) {
    const auto tiles = sm90_prefill::schedule_for<Traits>(p, device);
    if (tiles.tokens > 0)
      return int(sm90_prefill::launch<Traits>(p, tiles, static_cast<ptx::Stream>(stream)));
  }
  if constexpr (Traits::kHeadDim <
                256) {  // windows that fit are too small to be in use beyond that
    const auto ring = sm80_swa_prefill::schedule_for<Traits>(p, device);
    if (ring.num_slots > 0)
      return int(sm80_swa_prefill::launch<Traits>(p, ring, static_cast<ptx::Stream>(stream)));
  }
  const auto stages = sm80_prefill::schedule_for<Traits>(p, device);
  if (stages.num_stages == 0) return kNoRoom;
  return int(sm80_prefill::launch<Traits>(p, stages, static_cast<ptx::Stream>(stream)));
}

template <int kHeadDim, int kValueDim>
int prefill_dims(const AttentionParams& p, const Device& device, Stream stream) {
  return with_traits<kHeadDim, kValueDim>(
      p, [&](auto traits) { return prefill_traits<decltype(traits)>(p, device, stream); });
}

}  // namespace swa::cuda
