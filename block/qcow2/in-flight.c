/* SPDX-License-Identifier: MIT */
#include "in-flight.h"

struct Qcow2InFlight {
    Qcow2Pending *first; /* under q->lock */
    GMutex lock;         /* guards the queues of all; taken inside of q->lock */
};

Qcow2InFlight *qcow2_in_flight_new(void)
{
    Qcow2InFlight *in_flight = g_new0(Qcow2InFlight, 1);

    g_mutex_init(&in_flight->lock);
    return in_flight;
}

void qcow2_in_flight_free(Qcow2InFlight *in_flight)
{
    if (!in_flight) {
        return;
    }
    g_assert(!in_flight->first);
    g_mutex_clear(&in_flight->lock);
    g_free(in_flight);
}

static Qcow2Pending *find_overlap(Qcow2InFlight *in_flight, int64_t guest, int64_t bytes)
{
    Qcow2Pending *pending = in_flight->first;

    while (pending &&
           (pending->guest >= guest + bytes || pending->guest + pending->bytes <= guest)) {
        pending = pending->next;
    }
    return pending;
}

bool coroutine_fn qcow2_in_flight_wait(Qcow2 *q, int64_t guest, int64_t bytes)
{
    Qcow2InFlight *in_flight = q->in_flight;
    Qcow2Pending *pending = find_overlap(in_flight, guest, bytes);

    if (!pending) {
        return false;
    }
    g_mutex_lock(&in_flight->lock); /* before `lock` goes, so that no wake is missed */
    co_mutex_unlock(&q->lock);
    co_queue_wait(&pending->waiters, &in_flight->lock);
    g_mutex_unlock(&in_flight->lock);
    co_mutex_lock(&q->lock);
    return true;
}

void qcow2_in_flight_add(Qcow2 *q, Qcow2Pending *pending, int64_t guest, int64_t bytes)
{
    Qcow2InFlight *in_flight = q->in_flight;

    *pending = (Qcow2Pending){ .guest = guest, .bytes = bytes, .next = in_flight->first };
    co_queue_init(&pending->waiters);
    if (pending->next) {
        pending->next->previous = pending;
    }
    in_flight->first = pending;
}

void qcow2_in_flight_remove(Qcow2 *q, Qcow2Pending *pending)
{
    Qcow2InFlight *in_flight = q->in_flight;

    if (pending->next) {
        pending->next->previous = pending->previous;
    }
    if (pending->previous) {
        pending->previous->next = pending->next;
    } else {
        in_flight->first = pending->next;
    }
    g_mutex_lock(&in_flight->lock);
    co_queue_wake_all(&pending->waiters);
    g_mutex_unlock(&in_flight->lock);
}
