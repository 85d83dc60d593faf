#include "cuda/kernels/prefill_dims.cuh"

template int swa::cuda::prefill_dims<128, 128>(const AttentionParams&, const Device&, Stream);
