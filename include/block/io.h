/* SPDX-License-Identifier: MIT */
/*
 * Requests on nodes, as drivers, filters and the copying engine make them on their children.
 *
 * All are coroutines, on any loop, and return 0 or -errno. Ranges are bytes and need no alignment:
 * the core reads, merges and writes whole blocks where the node asks for it, and keeps such
 * requests from overlapping others. Requests enter the graph only through a BlockBackend
 * (block/backend.h), which is where they are counted, held back and drained; these
 * functions assume that they are inside such a request.
 *
 * The end of the node. A read may cross it or lie beyond it: what is beyond reads as zeroes. That
 * is so for every child; a backend refuses such reads at its door. A write or zero-write that ends
 * beyond it fails with -EIO, unless the edge has PERM_RESIZE (as the children of a writable format
 * in the roles CHILD_DATA and CHILD_METADATA do) and the node can grow by being written
 * (BlockDriver.can_grow): then it grows, to the end of the range rounded up to its
 * request_alignment and to 512 bytes, and what was between the old end and the range reads as
 * zeroes. Everybody who looks at the size afterwards sees the new one, and what was written is in
 * the node's dirty bitmaps. Discards beyond the end of such a node do nothing.
 */
#ifndef MERINO_BLOCK_IO_H
#define MERINO_BLOCK_IO_H

#include "block/node.h"
#include "util/coroutine.h"
#include "util/iov.h"

typedef enum RequestFlags {
    REQ_FUA = 1 << 0,              /* durable when acknowledged */
    REQ_MAY_UNMAP = 1 << 1,        /* zero-write: space may be given back */
    REQ_NO_FALLBACK = 1 << 2,      /* zero-write: -ENOTSUP rather than slow */
    REQ_WRITE_UNCHANGED = 1 << 3,  /* what is read stays as it was: bitmaps are not marked */
    REQ_PREFETCH = 1 << 4,         /* read: fill caches; `vec` may be NULL */
    REQ_WRITE_COMPRESSED = 1 << 5, /* whole clusters, to be kept compressed where the format can */
} RequestFlags;

enum {
    BLOCK_STATUS_DATA = 1 << 0,         /* reads come from storage that is allocated */
    BLOCK_STATUS_ZERO = 1 << 1,         /* reads as zeroes */
    BLOCK_STATUS_OFFSET_VALID = 1 << 2, /* `map` and `file` are set */
    BLOCK_STATUS_ALLOCATED = 1 << 3,    /* this layer decides, not its backing file */
    BLOCK_STATUS_EOF = 1 << 4,          /* the range ends at the end of the node */
};

typedef struct BlockStatus {
    int flags;
    int64_t bytes;   /* how far this holds, at least 1, at most what was asked */
    int64_t map;     /* offset in `file` */
    BlockNode *file; /* borrowed */
    int depth;       /* of *_above: 0 is the top layer; of an unallocated range: number of layers */
} BlockStatus;

int coroutine_fn child_co_preadv(BlockChild *child, int64_t offset, int64_t bytes, IoVector *vec,
                                 unsigned flags);
int coroutine_fn child_co_pwritev(BlockChild *child, int64_t offset, int64_t bytes, IoVector *vec,
                                  unsigned flags);
int coroutine_fn child_co_pwrite_zeroes(BlockChild *child, int64_t offset, int64_t bytes,
                                        unsigned flags);
int coroutine_fn child_co_pdiscard(BlockChild *child, int64_t offset, int64_t bytes);
int coroutine_fn child_co_flush(BlockChild *child);
int coroutine_fn child_co_truncate(BlockChild *child, int64_t size, PreallocMode prealloc,
                                   GError **error);

/* Plain-buffer forms. */
int coroutine_fn child_co_pread(BlockChild *child, int64_t offset, int64_t bytes, void *buf);
int coroutine_fn child_co_pwrite(BlockChild *child, int64_t offset, int64_t bytes, const void *buf,
                                 unsigned flags);

/* What one node says of a range (filters say what their child says). */
int coroutine_fn node_co_block_status(BlockNode *node, int64_t offset, int64_t bytes,
                                      BlockStatus *ret_status);
/* The same through the backing chain: the layer that decides is `depth` down. `base` (excluded)
 * ends the walk; NULL: the whole chain. */
int coroutine_fn node_co_block_status_above(BlockNode *node, BlockNode *base, int64_t offset,
                                            int64_t bytes, BlockStatus *ret_status);

/* Memory for requests on `node`, aligned as it wants. Free with buffer_free(). NULL when there is
 * none to be had. */
void *node_try_buffer(BlockNode *node, size_t bytes);
void buffer_free(void *buffer);

#endif
