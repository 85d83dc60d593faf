// The instructions that are allowed to err, as PTX documents how far: rounded correctly, or as far
// off as they may be.
#pragma once

namespace swa::emu {

// Within 2 ulp; subnormal results become 0. Counted.
float ex2(float x);

// Within 2^-22, absolutely where x is in (0.5, 2), else relatively.
float lg2(float x);

// Within 2^-11, relatively.
float tanh_approx(float x);

}  // namespace swa::emu
