// Loads and stores of a single lane: checked, recorded for the race checker, counted.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "source_location.hpp"

namespace swa::emu {

void load_global(void* to, const void* address, size_t bytes, Loc loc);
// Through the non-coherent cache, which may be filled before the kernel ahead has ended.
void load_constant(void* to, const void* address, size_t bytes, Loc loc);
void store_global(void* address, const void* from, size_t bytes, Loc loc);
void load_shared(void* to, uint32_t address, size_t bytes, Loc loc);
void store_shared(uint32_t address, const void* from, size_t bytes, Loc loc);

// What p[i] gives for a GlobalPointer: reads when converted, writes when assigned to.
template <class T>
struct GlobalElement {
  T* address;
  Loc loc;
  operator std::remove_const_t<T>() const {
    std::remove_const_t<T> value;
    load_global(&value, address, sizeof value, loc);
    return value;
  }
  const GlobalElement& operator=(const std::remove_const_t<T>& value) const {
    store_global(address, &value, sizeof value, loc);
    return *this;
  }
  const GlobalElement& operator=(const GlobalElement& o) const {
    return *this = std::remove_const_t<T>(o);
  }
  GlobalElement(T* a, Loc l) : address(a), loc(l) {}
  GlobalElement(const GlobalElement&) = default;
};

// A pointer into registered global memory, for scalars.
template <class T>
class GlobalPointer {
 public:
  GlobalPointer() = default;
  GlobalPointer(T* p) : p_(p) {}
  GlobalElement<T> operator[](Index i) const { return {p_ + i.value, i.loc}; }
  GlobalPointer operator+(long i) const { return p_ + i; }
  T* get() const { return p_; }

 private:
  T* p_ = nullptr;
};

uint32_t smem_address(const void* pointer, Loc loc);

template <class T>
struct SharedElement {
  T* address;
  Loc loc;
  operator T() const {
    T value;
    load_shared(&value, smem_address(address, loc), sizeof value, loc);
    return value;
  }
  const SharedElement& operator=(const T& value) const {
    store_shared(smem_address(address, loc), &value, sizeof value, loc);
    return *this;
  }
  const SharedElement& operator=(const SharedElement& o) const { return *this = T(o); }
  const SharedElement& operator+=(const T& value) const { return *this = T(*this) + value; }
  SharedElement(T* a, Loc l) : address(a), loc(l) {}
  SharedElement(const SharedElement&) = default;
};

// A pointer into the block's shared memory.
template <class T>
class SharedPointer {
 public:
  SharedPointer() = default;
  SharedPointer(T* p) : p_(p) {}
  SharedElement<T> operator[](Index i) const { return {p_ + i.value, i.loc}; }
  SharedPointer operator+(long i) const { return p_ + i; }
  T* get() const { return p_; }

 private:
  T* p_ = nullptr;
};

}  // namespace swa::emu
