/* SPDX-License-Identifier: MIT */
#include "qapi/introspect.h"

#include <jansson.h>

json_t *qapi_introspect(void)
{
    static json_t *schema;

    if (!schema) {
        schema = json_loads(qapi_introspect_text, 0, NULL);
        g_assert(schema);
    }
    return json_incref(schema);
}
