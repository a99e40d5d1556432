/* SPDX-License-Identifier: MIT */
/*
 * JSON as text: what comes in, and what goes out.
 *
 * Incoming text is JSON with two liberties that QMP clients take: strings may stand in single
 * quotes, and inside of strings \' is a single quote. Integers that do not fit 64 signed
 * bits become reals, so that whoever wants an integer there refuses them by name.
 *
 * Outgoing objects have their members in the order in which QEMU's dictionaries print
 * theirs, because scripts compare such output as text: by the bucket of the member's name in a
 * hash table, and within a bucket the one put in last comes first. This is the one place that knows
 * the order; nobody else needs to care in which order he builds an object.
 */
#ifndef MERINO_QAPI_JSON_H
#define MERINO_QAPI_JSON_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

/* The one JSON value in `text`, of any type. Duplicate keys and nesting deeper than jansson's limit
 * (2048) are errors. */
json_t *qapi_json_parse(const char *text, size_t len, GError **error);

/* One line of plain ASCII without newline, ", " and ": " as separators; or, when `pretty`, indented
 * by four blanks a level. Free with g_free(). */
char *qapi_json_text(const json_t *value, bool pretty);

/* The names of an object's members in the order in which they are printed. Free with g_strfreev().
 */
char **qapi_json_names(const json_t *object);

#endif
