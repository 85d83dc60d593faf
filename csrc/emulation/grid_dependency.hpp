// Programmatic dependent launch: what a dependent kernel may touch before it has waited for the
// kernel ahead of it. Kernels run one after the other here; the check is what would race on a card.
#pragma once
#include "source_location.hpp"

namespace swa::emu {

struct Buffer;

// griddepcontrol.wait by the running thread.
void wait_for_grid();

// Called at every access to global memory: a thread of a dependent kernel that has not waited may
// only read what no kernel writes.
void check_grid_dependency(const Buffer& buffer, bool write, Loc loc);

}  // namespace swa::emu
