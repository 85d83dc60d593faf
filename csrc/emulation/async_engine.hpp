// Operations that a thread starts and that land later on their own: TMA and bulk loads, cp.async
// arrivals on an mbarrier.
#pragma once
#include <functional>

namespace swa::emu {

using AsyncOp = std::function<void()>;  // lands the operation

// Lands the operation now or leaves it in flight, as the launch's policy says.
void submit(AsyncOp op);
// Lands one operation in flight; false when there is none. Lazy launches call it only when no
// thread can run.
bool land_one();

}  // namespace swa::emu
