/* SPDX-License-Identifier: MIT */
#include "buffers.h"

#include <stdlib.h>

#define SMALLEST_SHIFT 12

G_STATIC_ASSERT((1 << (SMALLEST_SHIFT + NBD_POOL_CLASSES - 1)) == NBD_MAX_PAYLOAD);

/* An idle buffer holds the link to the next one of its class. */
typedef struct IdleBuffer {
    struct IdleBuffer *next;
} IdleBuffer;

static unsigned class_of(size_t bytes)
{
    size_t pages = (bytes - 1) >> SMALLEST_SHIFT;

    return pages ? 64 - (unsigned)__builtin_clzl(pages) : 0;
}

static size_t class_bytes(unsigned class)
{
    return (size_t)1 << (SMALLEST_SHIFT + class);
}

void nbd_pool_init(NbdBufferPool *pool)
{
    *pool = (NbdBufferPool){ 0 };
}

void nbd_pool_done(NbdBufferPool *pool)
{
    for (unsigned class = 0; class < NBD_POOL_CLASSES; class ++) {
        while (pool->idle[class]) {
            IdleBuffer *buffer = pool->idle[class];

            pool->idle[class] = buffer->next;
            free(buffer);
        }
    }
    pool->kept = 0;
}

void *nbd_pool_get(NbdBufferPool *pool, size_t bytes)
{
    unsigned class = class_of(bytes);
    IdleBuffer *buffer = pool->idle[class];

    g_assert(bytes > 0 && bytes <= NBD_MAX_PAYLOAD);
    if (buffer) {
        pool->idle[class] = buffer->next;
        pool->kept -= class_bytes(class);
        return buffer;
    }
    return aligned_alloc((size_t)1 << SMALLEST_SHIFT, class_bytes(class));
}

void nbd_pool_put(NbdBufferPool *pool, void *buffer, size_t bytes)
{
    unsigned class = class_of(bytes);
    IdleBuffer *idle = buffer;

    if (pool->kept + class_bytes(class) > NBD_POOL_KEEP) {
        free(buffer);
        return;
    }
    idle->next = pool->idle[class];
    pool->idle[class] = idle;
    pool->kept += class_bytes(class);
}
