/* SPDX-License-Identifier: MIT */
/*
 * Memory for the data of requests, kept for reuse.
 *
 * A pool belongs to one connection and is used on its loop only, so it needs no lock. Buffers are
 * powers of two from 4 KiB to NBD_MAX_PAYLOAD, aligned to 4 KiB. Idle ones are kept up to
 * NBD_POOL_KEEP bytes; beyond that they go back to the system.
 */
#ifndef MERINO_NBD_BUFFERS_H
#define MERINO_NBD_BUFFERS_H

#include "protocol.h"

#define NBD_POOL_KEEP    (8 << 20)
#define NBD_POOL_CLASSES 14 /* 4 KiB << 13 is NBD_MAX_PAYLOAD */

typedef struct NbdBufferPool {
    struct IdleBuffer *idle[NBD_POOL_CLASSES];
    size_t kept; /* bytes in `idle` */
} NbdBufferPool;

void nbd_pool_init(NbdBufferPool *pool);
void nbd_pool_done(NbdBufferPool *pool); /* every buffer has been put back */

/* At least `bytes`, which is 1 to NBD_MAX_PAYLOAD; NULL when there is no memory. */
void *nbd_pool_get(NbdBufferPool *pool, size_t bytes);

/* Put back what was got for the same number of bytes. */
void nbd_pool_put(NbdBufferPool *pool, void *buffer, size_t bytes);

#endif
