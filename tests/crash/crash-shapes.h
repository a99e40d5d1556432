/* SPDX-License-Identifier: MIT */
/* The kinds of images that both workloads are tried on. */
#ifndef MERINO_TESTS_CRASH_SHAPES_H
#define MERINO_TESTS_CRASH_SHAPES_H

#include "crash-image.h"

extern const CrashShape crash_shapes[];
extern const size_t n_crash_shapes;

#endif
