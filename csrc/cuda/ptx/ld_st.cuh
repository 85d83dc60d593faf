// Loads and stores of one lane: 4, 8 or 16 bytes to and from global and shared memory.
#pragma once
#include "cuda/ptx/platform.cuh"
#if SWA_EMULATED
#include "emulation/access.hpp"
#endif

namespace swa::ptx {

// For scalars in global memory: p[i] is checked and counted in emulation.
#if SWA_EMULATED
template <class T>
using GlobalPointer = emu::GlobalPointer<T>;
#else
template <class T>
using GlobalPointer = T*;
#endif

template <class V>
constexpr bool kVectorizable = sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16;

// Read through the non-coherent cache: only for memory that nobody writes while the kernel runs,
// which for a dependent kernel (grid_dependency.cuh) includes what it waits for.
template <class V>
SWA_DEVICE V ldg(const void* address SWA_LOC) {
  static_assert(kVectorizable<V>, "ldg takes 4, 8 or 16 bytes");
#if SWA_EMULATED
  V value;
  emu::load_constant(&value, address, sizeof value, loc);
  return value;
#else
  if constexpr (sizeof(V) == 4) {
    uint32_t v;
    asm("ld.global.nc.b32 %0, [%1];" : "=r"(v) : "l"(address));
    return bit_cast<V>(v);
  } else if constexpr (sizeof(V) == 8) {
    U32x2 v;
    asm("ld.global.nc.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address));
    return bit_cast<V>(v);
  } else {
    U32x4 v;
    asm("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(address));
    return bit_cast<V>(v);
  }
#endif
}

template <class V>
SWA_DEVICE void stg(void* address, const V& value SWA_LOC) {
  static_assert(kVectorizable<V>, "stg takes 4, 8 or 16 bytes");
#if SWA_EMULATED
  emu::store_global(address, &value, sizeof value, loc);
#else
  if constexpr (sizeof(V) == 4) {
    asm volatile("st.global.b32 [%0], %1;" ::"l"(address), "r"(bit_cast<uint32_t>(value))
                 : "memory");
  } else if constexpr (sizeof(V) == 8) {
    const U32x2 v = bit_cast<U32x2>(value);
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(address), "r"(v.x), "r"(v.y) : "memory");
  } else {
    const U32x4 v = bit_cast<U32x4>(value);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(v.x), "r"(v.y),
                 "r"(v.z), "r"(v.w)
                 : "memory");
  }
#endif
}

template <class V>
SWA_DEVICE V lds(uint32_t address SWA_LOC) {
  static_assert(kVectorizable<V>, "lds takes 4, 8 or 16 bytes");
#if SWA_EMULATED
  V value;
  emu::load_shared(&value, address, sizeof value, loc);
  return value;
#else
  if constexpr (sizeof(V) == 4) {
    uint32_t v;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
    return bit_cast<V>(v);
  } else if constexpr (sizeof(V) == 8) {
    U32x2 v;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "r"(address)
                 : "memory");
    return bit_cast<V>(v);
  } else {
    U32x4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return bit_cast<V>(v);
  }
#endif
}

template <class V>
SWA_DEVICE void sts(uint32_t address, const V& value SWA_LOC) {
  static_assert(kVectorizable<V>, "sts takes 4, 8 or 16 bytes");
#if SWA_EMULATED
  emu::store_shared(address, &value, sizeof value, loc);
#else
  if constexpr (sizeof(V) == 4) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(bit_cast<uint32_t>(value))
                 : "memory");
  } else if constexpr (sizeof(V) == 8) {
    const U32x2 v = bit_cast<U32x2>(value);
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(v.x), "r"(v.y) : "memory");
  } else {
    const U32x4 v = bit_cast<U32x4>(value);
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y),
                 "r"(v.z), "r"(v.w)
                 : "memory");
  }
#endif
}

}  // namespace swa::ptx
