/* SPDX-License-Identifier: MIT */
#include "qmp-request.h"

#include "util/error.h"

static bool check_members(const json_t *message, GError **error)
{
    static const char *const known[] = { "execute", "arguments", "id", NULL };
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)message, name, value)
    {
        if (!g_strv_contains(known, name)) {
            merino_error(error, "QMP input member '%s' is unexpected", name);
            return false;
        }
    }
    return true;
}

bool qmp_request_parse(const json_t *message, QmpRequest *ret_request, GError **error)
{
    const json_t *execute = json_object_get(message, "execute");
    const json_t *arguments = json_object_get(message, "arguments");

    if (!json_is_object(message)) {
        merino_error(error, "QMP input must be a JSON object");
        return false;
    }
    ret_request->id = json_object_get(message, "id");
    if (!check_members(message, error)) {
        return false;
    }
    if (execute && !json_is_string(execute)) {
        merino_error(error, "QMP input member 'execute' must be a string");
        return false;
    }
    if (arguments && !json_is_object(arguments)) {
        merino_error(error, "QMP input member 'arguments' must be an object");
        return false;
    }
    if (!execute) {
        merino_error(error, "QMP input lacks member 'execute'");
        return false;
    }
    ret_request->command = json_string_value(execute);
    ret_request->arguments = arguments;
    return true;
}
