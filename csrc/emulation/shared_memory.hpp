// Shared memory: where it lies, what a 32-bit shared address means, bounds.
//
// A shared address is kSmemBase + offset; bits 24 and up are 0 for the CTA's own memory, else rank
// + 1 of a CTA of the cluster (what mapa returns). The base is not 0 because sm_90 reserves the
// first KiB; a kernel that takes offset 0 for an address is caught.
#pragma once
#include <cstddef>
#include <cstdint>

#include "source_location.hpp"

namespace swa::emu {

struct Block;

constexpr uint32_t kSmemBase = 0x400;
constexpr size_t kSmemAlignment = 1024;  // of the start of a block's shared memory

inline uint32_t local_address(uint32_t address) { return address & 0xffffff; }
inline uint32_t smem_offset(uint32_t address) { return local_address(address) - kSmemBase; }
inline uint32_t cluster_address(uint32_t address, unsigned rank) {
  return local_address(address) | (rank + 1) << 24;
}

// Address space of one block, with inaccessible pages on both sides: a raw pointer that runs away
// faults.
class SharedArena {
 public:
  static constexpr size_t kBytes = 256 << 10, kGuardBytes = 1 << 20;
  SharedArena();
  ~SharedArena();
  SharedArena(const SharedArena&) = delete;
  SharedArena& operator=(const SharedArena&) = delete;
  // The start for a block of `bytes`, 1 KiB aligned, as close to the upper guard as that allows.
  uint8_t* place(size_t bytes) const;

 private:
  uint8_t* base_;
};

// The block whose memory an address names; stops the launch if that CTA does not exist or has
// exited.
Block& block_of(uint32_t address, Loc loc);
// Host pointer to [address, address + bytes) of `block`; stops the launch when that is out of
// bounds.
uint8_t* smem_at(Block& block, uint32_t address, size_t bytes, const char* what, Loc loc);
// The shared address of a pointer into the running block's memory.
uint32_t smem_address(const void* pointer, Loc loc);
// Start of the running block's memory; `bytes` is what the caller is about to lay over it.
uint8_t* smem_start(size_t bytes, Loc loc);

}  // namespace swa::emu
