/* SPDX-License-Identifier: MIT */
/*
 * What coroutines and event loops know of each other.
 *
 * A Coroutine lies at the top of its own stack, so one mmap makes both and the pool keeps both.
 * Its fields belong to its home thread, but for `ready`, which belongs to whoever wakes it until
 * the home loop has taken it from its queue.
 */
#ifndef MERINO_COROUTINE_INT_H
#define MERINO_COROUTINE_INT_H

#include "coroutine-switch.h"
#include "util/coroutine.h"

/* Something that a loop has to run: an element of its queues, inside what it stands for. */
typedef struct ReadyNode {
    struct ReadyNode *next;
    void (*run)(struct ReadyNode *node);
} ReadyNode;

struct Coroutine {
    ReadyNode ready;
    EventLoop *home;
    Coroutine *caller; /* who entered it and goes on when it yields; NULL: its loop */
    CoroutineFn *fn;   /* NULL once it has ended */
    void *opaque;
    bool queued; /* in a queue of its loop */
    Context context;
    Coroutine *pool_next;
    void *mapping; /* of the whole: guard page, stack, this */
};

/* A coroutine that coroutine_enter() will begin with `fn`, from the calling thread's pool. */
Coroutine *coroutine_new(EventLoop *home, CoroutineFn *fn, void *opaque);

/* Run it until it yields or ends; an ended one goes back to the pool. Its home thread. */
void coroutine_enter(Coroutine *co);

/* The pool of idle stacks, coroutine-pool.c. Any thread. */
Coroutine *coroutine_pool_get(void);
void coroutine_pool_put(Coroutine *co);

/* A function for coroutine-pool.c's fresh stacks: runs one `fn` after the other. */
void coroutine_main(void *opaque);

#endif
