// The decode kernels of one pair of head dimensions, for all dtypes: what a translation unit of its
// own instantiates, so that the build is parallel.
#pragma once
#include "cuda/kernels/kernels.h"
#include "cuda/kernels/sm80_decode.cuh"
#include "cuda/kernels/sm90_decode.cuh"
#include "cuda/kernels/with_traits.cuh"

namespace swa::cuda {

template <class Traits>
int decode_traits(const AttentionParams& p, const Device& device, Stream stream) {
  const auto slots = sm90_decode::schedule_for<Traits>(p, device);
  if (slots.num_slots > 0)
    return int(sm90_decode::launch<Traits>(p, slots, static_cast<ptx::Stream>(stream)));
  const auto schedule = sm80_decode::schedule_for<Traits>(p, device);
  if (schedule.depth == 0) return kNoRoom;
  return int(sm80_decode::launch<Traits>(p, schedule, static_cast<ptx::Stream>(stream)));
}

template <int kHeadDim, int kValueDim>
int decode_dims(const AttentionParams& p, const Device& device, Stream stream) {
  return with_traits<kHeadDim, kValueDim>(
      p, [&](auto traits) { return decode_traits<decltype(traits)>(p, device, stream); });
}

}  // namespace swa::cuda
