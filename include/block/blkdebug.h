/* SPDX-License-Identifier: MIT */
/*
 * Breakpoints of `blkdebug` nodes: requests are suspended where an event says, until somebody lets
 * them go on. For programs that test (qemu-io's break, wait_break, resume and remove_break).
 *
 * `node` is the blkdebug node or a node with one beneath it, by way of filtered and data children;
 * -ENOTSUP where there is none. Main thread. While the node is hurried, as in drained sections,
 * nothing is suspended, and what was goes on.
 */
#ifndef MERINO_BLOCK_BLKDEBUG_H
#define MERINO_BLOCK_BLKDEBUG_H

#include "block/node.h"

/* Suspend the next request that meets the event. -ENOENT: no such event. */
int blkdebug_break(BlockNode *node, const char *event, const char *tag);
/* Take all breakpoints of that tag away and let all requests go on that they suspended. -ENOENT:
 * there were none. */
int blkdebug_remove_break(BlockNode *node, const char *tag);
/* Let one request of that tag go on, the one suspended last. -ENOENT: there is none. */
int blkdebug_resume(BlockNode *node, const char *tag);
bool blkdebug_is_suspended(BlockNode *node, const char *tag);

/* Called on the request's loop when it is suspended, and by whoever lets it go on; NULL: nobody is
 * told. Set before nodes are made. */
void blkdebug_set_reporter(void (*fn)(const char *tag, bool suspended));

#endif
