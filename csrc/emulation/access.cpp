#include "access.hpp"

#include "machine.hpp"

namespace swa::emu {

void load_global(void* to, const void* address, size_t bytes, Loc loc) {
  check_aligned(reinterpret_cast<uintptr_t>(address), bytes, "global load", loc);
  const Buffer& buffer = check_global(address, bytes, false, loc);
  count_global(Op::kGlobalLoad, address, bytes, buffer.tag, loc);
  std::memcpy(to, address, bytes);
}

void load_constant(void* to, const void* address, size_t bytes, Loc loc) {
  const Buffer& buffer = check_global(address, bytes, false, loc);
  if (machine().launch->shape.dependent && buffer.writable)
    report(Kind::kGridDependency, loc, {},
           format("non-coherent read of '%s' at %s: the kernel ahead may write it while this one, "
                  "its dependent, runs",
                  buffer.name.c_str(), to_string(loc).c_str()));
  load_global(to, address, bytes, loc);
}

void store_global(void* address, const void* from, size_t bytes, Loc loc) {
  check_aligned(reinterpret_cast<uintptr_t>(address), bytes, "global store", loc);
  const Buffer& buffer = check_global(address, bytes, true, loc);
  count_global(Op::kGlobalStore, address, bytes, buffer.tag, loc);
  std::memcpy(address, from, bytes);
}

void load_shared(void* to, uint32_t address, size_t bytes, Loc loc) {
  check_aligned(address, bytes, "shared load", loc);
  std::memcpy(to, smem_at(block_of(address, loc), address, bytes, "load", loc), bytes);
  note_read(address, bytes, loc);
  count_shared(Op::kSharedLoad, address, bytes, loc);
}

void store_shared(uint32_t address, const void* from, size_t bytes, Loc loc) {
  check_aligned(address, bytes, "shared store", loc);
  std::memcpy(smem_at(block_of(address, loc), address, bytes, "store", loc), from, bytes);
  note_write(address, bytes, loc);
  count_shared(Op::kSharedStore, address, bytes, loc);
}

}  // namespace swa::emu
