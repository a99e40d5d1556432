/* SPDX-License-Identifier: MIT */
#include "monitor/events.h"

#include "events-internal.h"
#include "qapi/event.h"
#include "qmp-session.h"

#include <jansson.h>

static GQueue held_events = G_QUEUE_INIT;
static bool holding;

void qmp_events_hold(void)
{
    g_assert(!holding);
    holding = true;
}

void qmp_events_flush(void)
{
    json_t *event;

    while ((event = g_queue_pop_head(&held_events))) {
        qmp_sessions_broadcast(event);
        json_decref(event);
    }
}

void qmp_events_release(void)
{
    holding = false;
    qmp_events_flush();
}

static void emit(const char *name, json_t *message)
{
    g_queue_push_tail(&held_events, json_incref(message));
    if (!holding) {
        qmp_events_flush();
    }
}

void qmp_events_init(void)
{
    qapi_event_emit_fn = emit;
}
