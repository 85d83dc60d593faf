// cp.async: per-thread asynchronous copies of 4, 8 or 16 bytes from global to shared memory, in
// groups.
//
// Lazy: the data is fetched and written when the owning thread waits for the group; until then the
// destination is poisoned.
#pragma once
#include <cstdint>

#include "source_location.hpp"

namespace swa::emu {

struct CpAsync {
  uint32_t dst;
  const void* src;
  uint16_t bytes, src_bytes;
  uint32_t group;
  bool data_taken;  // eager: the source was read at issue
  Loc loc;
  uint8_t data[16];
};

// Copies src_bytes and fills the rest of `bytes` with zeros.
void cp_async(uint32_t dst, const void* src, int bytes, int src_bytes, Loc loc);
void cp_async_commit();
// Lands all but the `n` most recently committed groups of the running thread.
void cp_async_wait(uint32_t n);
// The running thread's copies so far arrive on an mbarrier when they have landed, without raising
// its expected count.
void cp_async_mbarrier_arrive_noinc(uint32_t mbarrier, Loc loc);

}  // namespace swa::emu
