#include "memory_map.hpp"

#include <algorithm>

#include "grid_dependency.hpp"
#include "machine.hpp"

namespace swa::emu {

void MemoryMap::add(const void* data, size_t bytes, const std::string& name, const std::string& tag,
                    bool writable) {
  auto known = std::find(tags_.begin(), tags_.end(), tag);
  const int index = int(known - tags_.begin());
  if (known == tags_.end()) tags_.push_back(tag);
  const auto low = reinterpret_cast<uintptr_t>(data);
  buffers_.push_back({low, low + bytes, name, index, writable});
  std::sort(buffers_.begin(), buffers_.end(),
            [](const Buffer& a, const Buffer& b) { return a.low < b.low; });
}

static auto first_above(const std::vector<Buffer>& buffers, uintptr_t address) {
  return std::upper_bound(buffers.begin(), buffers.end(), address,
                          [](uintptr_t a, const Buffer& b) { return a < b.low; });
}

const Buffer* MemoryMap::find(uintptr_t address, size_t bytes) const {
  // Backwards: views of one tensor may overlap, so the last buffer that starts below need not be
  // the one.
  for (auto b = first_above(buffers_, address); b != buffers_.begin();)
    if (address + bytes <= (--b)->high) return &*b;
  return nullptr;
}

std::string MemoryMap::neighbours(uintptr_t address) const {
  std::string text;
  auto above = first_above(buffers_, address);
  if (above != buffers_.begin()) {
    const Buffer& b = *(above - 1);
    text += format("; nearest below: '%s' ends %lld bytes before", b.name.c_str(),
                   static_cast<long long>(address - b.high));
  }
  if (above != buffers_.end())
    text += format("; nearest above: '%s' starts %lld bytes after", above->name.c_str(),
                   static_cast<long long>(above->low - address));
  return text;
}

const Buffer& check_global(const void* pointer, size_t bytes, bool write, Loc loc) {
  Machine& m = machine();
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const Buffer* b = m.last_buffer;
  if (!(b && address >= b->low && address + bytes <= b->high)) {
    b = m.session->memory.find(address, bytes);
    if (!b)
      fail(Kind::kOutOfBounds, loc,
           format("global out-of-bounds %s of %zu bytes at %p, %s", write ? "write" : "read", bytes,
                  pointer, to_string(loc).c_str()) +
               m.session->memory.neighbours(address));
    m.last_buffer = b;
  }
  if (write && !b->writable)
    fail(Kind::kReadOnly, loc,
         format("write to read-only global '%s', %s", b->name.c_str(), to_string(loc).c_str()));
  check_grid_dependency(*b, write, loc);
  return *b;
}

void check_aligned(uintptr_t address, size_t alignment, const char* what, Loc loc) {
  if (address % alignment)
    fail(Kind::kMisaligned, loc,
         format("misaligned %s: 0x%llx is not a multiple of %zu, %s", what,
                static_cast<unsigned long long>(address), alignment, to_string(loc).c_str()));
}

}  // namespace swa::emu
