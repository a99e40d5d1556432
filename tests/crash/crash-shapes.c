/* SPDX-License-Identifier: MIT */
#include "crash-shapes.h"
#include "util/size.h"

/* By default: version 3, refcounts of 16 bits. */
#define SHAPE(shape_name, cluster_size, kib, more, ...)                                            \
    {                                                                                              \
        .name = shape_name, .create = "'cluster-size': " #cluster_size more, .size = (kib)*KiB,    \
        .cluster = (cluster_size), __VA_ARGS__                                                     \
    }

const CrashShape crash_shapes[] = {
    SHAPE("small-clusters", 512, 128, ""),
    SHAPE("small-caches", 512, 128, "",
          .open = ", 'l2-cache-size': 1024, 'refcount-cache-size': 2048"),
    SHAPE("small-slices", 4096, 256, "",
          .open = ", 'l2-cache-entry-size': 512, 'l2-cache-size': 1024"),
    SHAPE("discards-passed-on", 1024, 128, "", .open = ", 'pass-discard-other': true"),
    SHAPE("grows-ahead", 512, 128, "", .open = ", 'cache': {'direct': true}"),
    SHAPE("wide-refcounts", 1024, 128, ", 'refcount-bits': 64", .refcount_bits = 64),
    SHAPE("narrow-refcounts", 2048, 128, ", 'refcount-bits': 1", .refcount_bits = 1),
    SHAPE("version-2", 512, 128, ", 'version': 'v2'", .version = 2),
    SHAPE("lazy-refcounts", 1024, 128, ", 'lazy-refcounts': true"),
    SHAPE("backing-file", 4096, 128, "", .base = 120 * KiB),
    SHAPE("version-2-backing-file", 1024, 128, ", 'version': 'v2'", .version = 2,
          .base = 192 * KiB),
    SHAPE("data-file", 4096, 128, "", .data_file = true),
    SHAPE("raw-data-file", 1024, 128, ", 'data-file-raw': true", .data_file = true),
    SHAPE("subclusters", 16384, 256, ", 'extended-l2': true", .extended_l2 = true,
          .base = 200 * KiB),
    SHAPE("ordinary", 65536, 512, "", .stride = 4),
    SHAPE("large-clusters", 2097152, 4096, "", .stride = 150),
};

const size_t n_crash_shapes = G_N_ELEMENTS(crash_shapes);
