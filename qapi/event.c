/* SPDX-License-Identifier: MIT */
#include "qapi/event.h"

#include <jansson.h>

QapiEventEmit *qapi_event_emit_fn;

static json_t *timestamp(void)
{
    int64_t now = g_get_real_time();
    json_t *out = json_object();

    json_object_set_new(out, "seconds", json_integer(now / G_USEC_PER_SEC));
    json_object_set_new(out, "microseconds", json_integer(now % G_USEC_PER_SEC));
    return out;
}

void qapi_event_send(const char *name, json_t *data)
{
    json_t *message = json_object();

    json_object_set_new(message, "timestamp", timestamp());
    json_object_set_new(message, "event", json_string(name));
    if (data) {
        json_object_set_new(message, "data", data);
    }
    if (qapi_event_emit_fn) {
        qapi_event_emit_fn(name, message);
    }
    json_decref(message);
}
