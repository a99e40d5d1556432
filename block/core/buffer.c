/* SPDX-License-Identifier: MIT */
#include "block/io.h"

#include <stdlib.h>

/* Memory on cache lines of its own, also where the node does not ask for more. */
#define MIN_ALIGNMENT 64

void *node_try_buffer(BlockNode *node, size_t bytes)
{
    void *buffer;

    if (posix_memalign(&buffer, MAX(node->limits.memory_alignment, MIN_ALIGNMENT), bytes) != 0) {
        return NULL;
    }
    return buffer;
}

void buffer_free(void *buffer)
{
    free(buffer);
}
