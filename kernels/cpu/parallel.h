// How many threads a loop is worth. The runtime is torch's own, see toolchain.py.
#pragma once

#include <cstdint>

// One below 32768 elements, ATen's grain size: 20 us of work, where waking a thread takes 5.
inline int useful_threads(int64_t elements, int64_t threads) { return elements < 32768 ? 1 : (int)threads; }
