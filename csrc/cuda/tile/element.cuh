// Elements of any dtype, by the unit: what one lane loads and stores at once.
#pragma once
#include "cuda/params.h"
#include "cuda/ptx/ld_st.cuh"
#include "cuda/tile/fp8.cuh"

namespace swa::cuda {

// Up to 16 bytes in registers, from the lowest bits up.
template <int kBytes>
struct Unit {
  uint32_t words[(kBytes + 3) / 4];
};

template <DType kDType>
constexpr int kSizeOf = size_of(kDType);  // bytes of an element

constexpr int kWidestUnit = 16;  // bytes

template <int kBytes>
SWA_DEVICE Unit<kBytes> load_unit(const char* address SWA_LOC) {
  if constexpr (kBytes == 1) {
    const ptx::GlobalPointer<const uint8_t> element = reinterpret_cast<const uint8_t*>(address);
    return {uint8_t(element[0])};
  } else if constexpr (kBytes == 2) {
    const ptx::GlobalPointer<const uint16_t> element = reinterpret_cast<const uint16_t*>(address);
    return {uint16_t(element[0])};
  } else {
    return ptx::ldg<Unit<kBytes>>(address SWA_PASS_LOC);
  }
}

template <int kBytes>
SWA_DEVICE void store_unit(char* address, const Unit<kBytes>& unit SWA_LOC) {
  if constexpr (kBytes == 1) {
    const ptx::GlobalPointer<uint8_t> element = reinterpret_cast<uint8_t*>(address);
    element[0] = uint8_t(unit.words[0]);
  } else if constexpr (kBytes == 2) {
    const ptx::GlobalPointer<uint16_t> element = reinterpret_cast<uint16_t*>(address);
    element[0] = uint16_t(unit.words[0]);
  } else {
    ptx::stg(address, unit SWA_PASS_LOC);
  }
}

template <DType kDType>
constexpr ptx::Half kHalfOf = kDType == DType::kBFloat16 ? ptx::Half::kBf16 : ptx::Half::kFp16;

// The element in the low bits; what lies above is ignored.
template <DType kDType>
SWA_DEVICE float to_float(uint32_t bits) {
  if constexpr (kDType == DType::kFloat32)
    return ptx::bit_cast<float>(bits);
  else if constexpr (kDType == DType::kFloat8)
    return decode_e4m3(bits & 0xff);
  else
    return ptx::half_low<kHalfOf<kDType>>(bits);
}

template <DType kDType>
SWA_DEVICE uint32_t from_float(float x) {
  if constexpr (kDType == DType::kFloat32)
    return ptx::bit_cast<uint32_t>(x);
  else if constexpr (kDType == DType::kFloat8)
    return encode_e4m3(x);
  else
    return ptx::pack_half<kHalfOf<kDType>>(x, 0.f);
}

// kCount elements of one dtype.
template <DType kDType, int kCount>
struct Elements {
  static constexpr int kSize = kSizeOf<kDType>, kBytes = kCount * kSize;
  using Bits = Unit<kBytes>;

  static SWA_DEVICE float get(const Bits& bits, int i) {
    return to_float<kDType>(bits.words[i * kSize / 4] >> (i * kSize % 4 * 8));
  }

  // Into bits that were 0.
  static SWA_DEVICE void set(Bits& bits, int i, float x) {
    bits.words[i * kSize / 4] |= from_float<kDType>(x) << (i * kSize % 4 * 8);
  }
};

// How many elements of the wider dtype fill the widest unit.
template <DType kFrom, DType kTo = kFrom>
constexpr int kElementsAtOnce =
    kWidestUnit / (kSizeOf<kFrom> > kSizeOf<kTo> ? kSizeOf<kFrom> : kSizeOf<kTo>);

// Equal dtypes keep their bits; to float8 is a division by the scale, from float8 a multiplication.
template <DType kFrom, DType kTo, int kCount>
SWA_DEVICE Unit<kCount * kSizeOf<kTo>> convert(const Unit<kCount * kSizeOf<kFrom>>& in,
                                               float scale) {
  if constexpr (kFrom == kTo) {
    return in;
  } else {
    Unit<kCount * kSizeOf<kTo>> out = {};
    SWA_UNROLL
    for (int i = 0; i < kCount; ++i) {
      float x = Elements<kFrom, kCount>::get(in, i);
      if constexpr (kTo == DType::kFloat8) x /= scale;
      if constexpr (kFrom == DType::kFloat8) x *= scale;
      Elements<kTo, kCount>::set(out, i, x);
    }
    return out;
  }
}

}  // namespace swa::cuda
