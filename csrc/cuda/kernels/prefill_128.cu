#include "cuda/kernels/attention_dims.cuh"

template int swa::cuda::prefill_dims<128, 128>(const AttentionParams&, const Device&, Stream);
