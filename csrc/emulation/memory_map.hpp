// Global memory as the kernel may see it: the buffers registered for a launch, each with a tag for
// the counters.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "source_location.hpp"

namespace swa::emu {

struct Buffer {
  uintptr_t low, high;  // [low, high)
  std::string name;
  int tag;  // index into MemoryMap::tags()
  bool writable;
};

class MemoryMap {
 public:
  void add(const void* data, size_t bytes, const std::string& name, const std::string& tag,
           bool writable);
  // The buffer that holds all of [address, address + bytes), or nullptr.
  const Buffer* find(uintptr_t address, size_t bytes) const;
  // "nearest below: 'q' ends 32 bytes before; nearest above: ..."
  std::string neighbours(uintptr_t address) const;
  const std::vector<std::string>& tags() const { return tags_; }

 private:
  std::vector<Buffer> buffers_;  // by address
  std::vector<std::string> tags_;
};

// Checks an access of the running thread against the registered buffers; what lies outside stops
// the launch.
const Buffer& check_global(const void* address, size_t bytes, bool write, Loc loc);
void check_aligned(uintptr_t address, size_t alignment, const char* what, Loc loc);

}  // namespace swa::emu
