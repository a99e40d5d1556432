/* SPDX-License-Identifier: MIT */
#include "qapi/dispatch.h"
#include "qapi/codec.h"
#include "util/error.h"

#include <jansson.h>

static const QapiType empty_type = { .name = "empty", .kind = QAPI_OBJECT, .size = 1 };

const QapiCommand *qapi_command_find(const QapiCommand *commands, const char *name)
{
    for (const QapiCommand *command = commands; command->name; command++) {
        if (g_str_equal(command->name, name)) {
            return command;
        }
    }
    return NULL;
}

bool qapi_command_run(const QapiCommand *commands, const char *name, const json_t *arguments,
                      json_t **ret, GError **error)
{
    const QapiCommand *command = qapi_command_find(commands, name);

    if (!command) {
        merino_error_class(error, MERINO_ERROR_COMMAND_NOT_FOUND,
                           "The command %s has not been found", name);
        return false;
    }
    return command->run(arguments, ret, error);
}

json_t *qapi_error_encode(const GError *error)
{
    g_autofree char *text = merino_error_text(error);
    g_autofree char *valid = g_utf8_make_valid(text, -1); /* it may tell of a file's name */

    return json_pack("{s:s, s:s}", "class", merino_error_class_name(error), "desc", valid);
}

bool qapi_no_arguments(const json_t *arguments, GError **error)
{
    void *value = qapi_decode(&empty_type, arguments, QAPI_DECODE_JSON, error);

    qapi_value_free(&empty_type, value);
    return value != NULL;
}
