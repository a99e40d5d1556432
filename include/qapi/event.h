/* SPDX-License-Identifier: MIT */
/*
 * Events on their way out.
 *
 * Whoever has something to tell calls the event's generated function (qapi-events.h). All of them
 * end here and leave through one function pointer, so that nobody below the monitor needs to
 * know it. While the pointer is NULL, events are dropped.
 *
 * Calling context: the main thread.
 */
#ifndef MERINO_QAPI_EVENT_H
#define MERINO_QAPI_EVENT_H

#include "qapi/type.h"

/* `message` is the whole message with timestamp, event and data; it is borrowed. */
typedef void QapiEventEmit(const char *name, json_t *message);

extern QapiEventEmit *qapi_event_emit_fn;

/* For generated code. Takes over `data`; NULL when the event has none. */
void qapi_event_send(const char *name, json_t *data);

#endif
