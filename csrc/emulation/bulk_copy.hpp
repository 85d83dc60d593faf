// Bulk copies: cp.async.bulk from global to shared memory, completing on an mbarrier, and back, in
// bulk groups.
#pragma once
#include <cstdint>
#include <vector>

#include "source_location.hpp"

namespace swa::emu {

struct Block;
struct Thread;

// A piece of an asynchronous load: `bytes` from `src` (zeros if null) to `offset` of a block's
// shared memory.
struct LoadSegment {
  uint32_t offset;
  const uint8_t* src;
  uint32_t bytes;
};

// Starts a load that lands as one unit and then completes `bytes` on the mbarrier.
void async_load(Block& block, std::vector<LoadSegment> segments, uint32_t bytes, uint32_t mbarrier,
                const char* what, Loc loc);

void bulk_load(uint32_t dst, const void* src, uint32_t bytes, uint32_t mbarrier, Loc loc);

// A piece of an asynchronous store: `bytes` from `offset` of the block's shared memory to `dst`;
// nullptr: they are read and go nowhere.
struct StoreSegment {
  uint32_t offset;
  uint8_t* dst;
  uint32_t bytes;
};

// A store to global memory that has not been waited for; it lands then.
struct BulkStore {
  const Thread* thread;
  uint32_t group, clock;
  StoreSegment segment;
  Loc loc;
};

// Adds a store to the running thread's current bulk group.
void async_store(const std::vector<StoreSegment>& segments, Loc loc);

void bulk_store(void* dst, uint32_t src, uint32_t bytes, Loc loc);
void bulk_commit();
// Waits for all but the `n` most recently committed groups of the running thread: for their reads
// of shared memory, after which what they write lands, too.
void bulk_wait(uint32_t n);

}  // namespace swa::emu
