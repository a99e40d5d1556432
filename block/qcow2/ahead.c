/* SPDX-License-Identifier: MIT */
/*
 * Growing the image file ahead of what is allocated.
 *
 * A direct write that makes a file longer has it to itself, and the file system's journal besides,
 * so writes that allocate would go one after the other however many there are. So before
 * clusters at the end of the file are allocated, it is made longer by a larger piece, which is
 * zeroed without being written and where writes go side by side. What was not used
 * is cut off when the image is closed or becomes read-only; after a crash the file is longer than
 * it needs to be, with nothing in it that anything refers to.
 *
 * Nothing lies, or is being written, where zeroes go: behind `meta_end` nothing was ever
 * allocated, nobody allocates while `lock` is held, and clusters that refcounts know of are left
 * alone.
 */
#include "runtime.h"
#include "util/size.h"

#define AHEAD_MIN      (1 * MiB)
#define AHEAD_MAX      (16 * MiB)
#define AHEAD_FRACTION 4 /* of the file's size */

static bool grows_ahead(const Qcow2 *q)
{
    return q->node->file->node->cache_direct && !has_data_file(q) && !q->ahead_refused;
}

static int64_t piece_size(const Qcow2 *q, int64_t size)
{
    return align_up(CLAMP(size / AHEAD_FRACTION, AHEAD_MIN, AHEAD_MAX), q->cluster_size);
}

void coroutine_fn qcow2_grow_ahead(Qcow2 *q, int64_t bytes)
{
    int64_t size = node_size(q->node->file->node), mark = q->meta_end;
    int64_t begin, piece, first, n;

    if (mark + bytes <= size || !grows_ahead(q)) {
        return;
    }
    begin = align_up(MAX(mark, size), q->cluster_size);
    piece = piece_size(q, begin);
    if (qcow2_find_free(q, begin >> q->header.cluster_bits, piece >> q->header.cluster_bits, &first,
                        &n) < 0 ||
        first << q->header.cluster_bits != begin || n << q->header.cluster_bits != piece ||
        child_co_pwrite_zeroes(q->node->file, begin, piece, REQ_NO_FALLBACK) < 0) {
        q->ahead_refused = true; /* what is written will tell why, if need be */
        return;
    }
    q->zero_begin = begin == q->zero_end ? q->zero_begin : begin;
    q->zero_end = begin + piece;
}

bool qcow2_is_zero_ahead(const Qcow2 *q, int64_t host, int64_t bytes)
{
    return host >= q->zero_begin && host + bytes <= q->zero_end;
}

/* Only what was grown ahead goes. What was allocated before may lie anywhere, behind the end of the
 * file as well, until it is written to. */
void coroutine_fn qcow2_cut_ahead(Qcow2 *q)
{
    int64_t end = MAX(q->meta_end, q->zero_begin);

    if (q->zero_end > end && node_size(q->node->file->node) == q->zero_end) {
        child_co_truncate(q->node->file, end, PREALLOC_MODE_OFF, NULL);
    }
    q->zero_begin = q->zero_end = 0;
}
