#include "grid_dependency.hpp"

#include "machine.hpp"

namespace swa::emu {

void wait_for_grid() { self().waited_for_grid = true; }

void check_grid_dependency(const Buffer& buffer, bool write, Loc loc) {
  const Machine& m = machine();
  if (!m.launch->shape.dependent || self().waited_for_grid || !buffer.writable) return;
  report(Kind::kGridDependency, loc, {},
         format("%s '%s' at %s by a dependent kernel that has not waited for the one ahead of it",
                write ? "write to" : "read of", buffer.name.c_str(), to_string(loc).c_str()));
}

}  // namespace swa::emu
