// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
// clang: -target bpfeb

// pass.bpf.c for machines of the other byte order.

#include "pass.bpf.c"
