/* SPDX-License-Identifier: MIT */
/*
 * The form of a QMP request: an object with `execute`, perhaps `arguments`, perhaps `id`.
 */
#ifndef MERINO_MONITOR_QMP_REQUEST_H
#define MERINO_MONITOR_QMP_REQUEST_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

/* Everything here belongs to the message. */
typedef struct QmpRequest {
    const char *command;
    const json_t *arguments; /* NULL: none */
    json_t *id;              /* NULL: none */
} QmpRequest;

/* Look at a message. `id` is written also when the rest is wrong, since a refusal echoes it. */
bool qmp_request_parse(const json_t *message, QmpRequest *ret_request, GError **error);

#endif
