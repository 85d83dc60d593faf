// Bugs planted in test kernels, chosen at run time, to prove that the emulator finds them.
#pragma once

namespace swa::emu::planted {

inline int current = 0;  // 0: none

}  // namespace swa::emu::planted
