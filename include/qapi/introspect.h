/* SPDX-License-Identifier: MIT */
/*
 * The schema's description of itself, as query-qmp-schema answers it.
 */
#ifndef MERINO_QAPI_INTROSPECT_H
#define MERINO_QAPI_INTROSPECT_H

#include "qapi/type.h"

/* Generated: a JSON array of SchemaInfo. */
extern const char qapi_introspect_text[];

/* The same, parsed once. A new reference to a value that nobody may change. Main thread. */
json_t *qapi_introspect(void);

#endif
