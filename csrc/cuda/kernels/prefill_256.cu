#include "cuda/kernels/prefill_dims.cuh"

template int swa::cuda::prefill_dims<256, 256>(const AttentionParams&, const Device&, Stream);
