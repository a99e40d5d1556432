/* SPDX-License-Identifier: MIT */
#include "parts.h"

#define ALL_SLOTS ((1U << QCOW2_PARTS_MAX) - 1)

static void coroutine_fn wait_for_one(Qcow2Parts *parts)
{
    parts->waiter = coroutine_self();
    coroutine_yield();
}

int coroutine_fn qcow2_parts_take(Qcow2Parts *parts)
{
    int slot;

    while (parts->busy == ALL_SLOTS && parts->ret == 0) {
        wait_for_one(parts);
    }
    if (parts->ret < 0) {
        return -1;
    }
    slot = __builtin_ctz(~parts->busy);
    parts->busy |= 1U << slot;
    return slot;
}

void qcow2_parts_end(Qcow2Parts *parts, int slot, int ret)
{
    parts->busy &= ~(1U << slot);
    if (parts->ret == 0) {
        parts->ret = ret;
    }
    if (parts->waiter) {
        coroutine_wake(g_steal_pointer(&parts->waiter));
    }
}

int coroutine_fn qcow2_parts_wait(Qcow2Parts *parts, int ret)
{
    if (parts->ret == 0) {
        parts->ret = ret;
    }
    while (parts->busy) {
        wait_for_one(parts);
    }
    return parts->ret;
}
