/* SPDX-License-Identifier: MIT */
/*
 * Vectors of memory pieces that one request reads into or writes from.
 *
 * An IoVector borrows the memory it lists; it owns only the list. Up to IOV_INLINE pieces need no
 * allocation. Offsets and sizes are bytes, counted over the whole vector.
 */
#ifndef MERINO_UTIL_IOV_H
#define MERINO_UTIL_IOV_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/uio.h>

#define IOV_INLINE 4

typedef struct IoVector {
    struct iovec *iov; /* inline_iov or the heap */
    int n;
    int capacity;
    size_t size; /* sum of the pieces */
    struct iovec inline_iov[IOV_INLINE];
} IoVector;

/* An initialised IoVector must not be copied by assignment: `iov` may point into itself. */
void iov_init(IoVector *vec);
void iov_init_buf(IoVector *vec, void *buf, size_t size);
void iov_done(IoVector *vec);

void iov_add(IoVector *vec, void *buf, size_t size);

/* Append the pieces of src[offset, offset + size). */
void iov_add_slice(IoVector *vec, const IoVector *src, size_t offset, size_t size);

/* Copy between a range of the vector that begins at `offset` and a plain buffer. */
void iov_to_buf(const IoVector *vec, size_t offset, void *buf, size_t size);
void iov_from_buf(IoVector *vec, size_t offset, const void *buf, size_t size);
void iov_memset(IoVector *vec, size_t offset, int byte, size_t size);

/* Whether a range holds only zero bytes; and the same of a plain buffer. */
bool iov_is_zero(const IoVector *vec, size_t offset, size_t size);
bool buffer_is_zero(const void *buf, size_t size);

/* Whether every piece's address and length is a multiple of `alignment` (a power of two). */
bool iov_is_aligned(const IoVector *vec, size_t alignment);

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(IoVector, iov_done)

#endif
