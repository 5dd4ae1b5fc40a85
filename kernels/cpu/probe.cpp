#include "simd.h"
QUARTET_EXPORT void quartet_probe(int64_t* out, int64_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < 1000; ++i) out[i] = i * kLanes;
}
