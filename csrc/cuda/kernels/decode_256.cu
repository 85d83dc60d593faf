#include "cuda/kernels/decode_dims.cuh"

template int swa::cuda::decode_dims<256, 256>(const AttentionParams&, const Device&, Stream);
