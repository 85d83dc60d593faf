#include "shared_memory.hpp"

#include <sys/mman.h>

#include <cstdlib>

#include "machine.hpp"

namespace swa::emu {

SharedArena::SharedArena() {
  void* p = mmap(nullptr, kBytes + 2 * kGuardBytes, PROT_NONE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) std::abort();
  base_ = static_cast<uint8_t*>(p) + kGuardBytes;
  mprotect(base_, kBytes, PROT_READ | PROT_WRITE);
}

SharedArena::~SharedArena() { munmap(base_ - kGuardBytes, kBytes + 2 * kGuardBytes); }

uint8_t* SharedArena::place(size_t bytes) const {
  return base_ + (kBytes - bytes) / kSmemAlignment * kSmemAlignment;
}

Block& block_of(uint32_t address, Loc loc) {
  Machine& m = machine();
  const uint32_t tag = address >> 24;
  if (tag == 0) return *self().block;
  if (tag - 1 >= m.blocks.size())
    fail(Kind::kInvalid, loc,
         format("shared::cluster address names CTA %u of a cluster of %zu", tag - 1,
                m.blocks.size()));
  Block& b = m.blocks[tag - 1];
  if (b.live == 0)
    fail(
        Kind::kExitedPeer, loc,
        format("access to the shared memory of CTA %u of the cluster, which has already exited, %s",
               tag - 1, to_string(loc).c_str()));
  if (m.config.race && &b != self().block) note_remote_access(b, loc);
  return b;
}

uint8_t* smem_at(Block& block, uint32_t address, size_t bytes, const char* what, Loc loc) {
  const uint32_t offset = smem_offset(address);
  if (local_address(address) < kSmemBase || offset + bytes > block.smem_bytes)
    fail(Kind::kOutOfBounds, loc,
         format("shared memory out-of-bounds %s: offset %lld + %zu > %zu allocated bytes, %s", what,
                static_cast<long long>(local_address(address)) - kSmemBase, bytes, block.smem_bytes,
                to_string(loc).c_str()));
  return block.smem + offset;
}

uint32_t smem_address(const void* pointer, Loc loc) {
  const Block& b = *self().block;
  const auto offset = static_cast<const uint8_t*>(pointer) - b.smem;
  if (offset < 0 || size_t(offset) > b.smem_bytes)
    fail(Kind::kOutOfBounds, loc,
         format("pointer does not point into this block's shared memory, %s",
                to_string(loc).c_str()));
  return uint32_t(offset) + kSmemBase;
}

uint8_t* smem_start(size_t bytes, Loc loc) {
  const Block& b = *self().block;
  if (bytes > b.smem_bytes)
    fail(Kind::kOutOfBounds, loc,
         format("%zu bytes of shared memory are used, the launch gave %zu, %s", bytes, b.smem_bytes,
                to_string(loc).c_str()));
  return b.smem;
}

}  // namespace swa::emu
