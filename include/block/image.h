/* SPDX-License-Identifier: MIT */
/*
 * Images as such: what is done to a whole image, beside its requests. Drivers of formats implement
 * it (the hooks of BlockDriver), tools and QMP use it.
 *
 * Hooks are coroutines of the main loop and run while the node is drained.
 */
#ifndef MERINO_BLOCK_IMAGE_H
#define MERINO_BLOCK_IMAGE_H

#include "block/node.h"
#include "util/coroutine.h"

typedef enum BlockCheckFix {
    CHECK_FIX_LEAKS = 1 << 0,
    CHECK_FIX_ERRORS = 1 << 1,
} BlockCheckFix;

/* What a check found. Counts are of clusters or table entries, as qemu-img check counts them. */
typedef struct BlockCheckResult {
    int64_t corruptions; /* left, after mending */
    int64_t leaks;
    int64_t check_errors; /* what could not be looked at */
    int64_t corruptions_fixed;
    int64_t leaks_fixed;
    int64_t image_end_offset; /* the end of what the image uses, in bytes of its file; 0: unknown */
    int64_t total_clusters;   /* all four 0: unknown */
    int64_t allocated_clusters;
    int64_t fragmented_clusters;
    int64_t compressed_clusters;

    /* Set by the caller, or NULL: called with each finding, as a line without newline
     * ("Leaked cluster 5 refcount=1 reference=0"). */
    void (*message)(const char *line, void *opaque);
    void *opaque;
} BlockCheckResult;

/* Tells how far a long operation is; both in units of the operation's own. */
typedef void BlockProgressFn(int64_t done, int64_t total, void *opaque);

/* What is to become of an image by qemu-img's amend: what is NULL, or lacks its flag, stays. */
typedef struct BlockAmendOptions {
    const char *backing_file; /* "": none */
    const char *backing_fmt;  /* "": none named */
    const char *data_file;
    bool has_size;
    int64_t size;
    bool has_version;
    BlockdevQcow2Version version;
    bool has_lazy_refcounts;
    bool lazy_refcounts;
    bool has_refcount_bits;
    int64_t refcount_bits;
    bool has_data_file_raw;
    bool data_file_raw;
    bool force; /* also what may cost data */
    BlockProgressFn *progress;
    void *progress_opaque;
} BlockAmendOptions;

/*
 * Done to a node by its driver's hooks (block/driver.h), while nothing else is in flight on it. The
 * caller has permission to write where something is changed. They return 0 or -errno with an error
 * in words; -ENOTSUP also when the driver has no such hook. Control plane.
 */
int node_check(BlockNode *node, BlockCheckResult *result, unsigned fix, GError **error);
int node_snapshot_create(BlockNode *node, const SnapshotInfo *info, GError **error);
int node_snapshot_goto(BlockNode *node, const char *id_or_name, GError **error);
int node_snapshot_delete(BlockNode *node, const char *name, GError **error);
/* Not NULL; empty where there are none. */
SnapshotInfoList *node_snapshot_list(BlockNode *node);
int node_amend(BlockNode *node, const BlockAmendOptions *options, GError **error);
int node_change_backing_file(BlockNode *node, const char *name, const char *format, GError **error);

#endif
