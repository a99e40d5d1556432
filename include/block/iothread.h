/* SPDX-License-Identifier: MIT */
/*
 * I/O threads: the `iothread` objects, each a thread with an event loop that exports may run on.
 *
 * Control plane. Ids are unique among all objects of the object registry (monitor/objects).
 */
#ifndef MERINO_BLOCK_IOTHREAD_H
#define MERINO_BLOCK_IOTHREAD_H

#include "qapi/qapi-types.h"
#include "util/event-loop.h"

bool iothread_add(const char *id, GError **error);
bool iothread_delete(const char *id, GError **error); /* refused while in use */
bool iothread_exists(const char *id);

/* The loop of that object, which stays in use until released. */
EventLoop *iothread_acquire(const char *id, GError **error);
void iothread_release(EventLoop *loop);

IOThreadInfoList *iothread_query(void);

#endif
