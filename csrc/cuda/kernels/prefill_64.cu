#include "cuda/kernels/prefill_dims.cuh"

template int swa::cuda::prefill_dims<64, 64>(const AttentionParams&, const Device&, Stream);
