/* SPDX-License-Identifier: MIT */
/*
 * The registry of objects made by users: object-add and object-del. Ids are unique among
 * objects of all types: `iothread` and `throttle-group`.
 */
#include "block/iothread.h"
#include "block/throttle.h"
#include "qapi/qapi-commands.h"
#include "util/error.h"

/* A letter, then letters, digits, '-', '.' and '_'. */
static bool is_identifier(const char *id)
{
    if (!g_ascii_isalpha(id[0])) {
        return false;
    }
    for (const char *at = id; *at; at++) {
        if (!g_ascii_isalnum(*at) && !strchr("-._", *at)) {
            return false;
        }
    }
    return true;
}

static bool check_free(const char *id, GError **error)
{
    if (iothread_exists(id) || throttle_group_exists(id)) {
        merino_error(error, "attempt to add duplicate property '%s' to object (type 'container')",
                     id);
        return false;
    }
    return true;
}

static bool add_throttle_group(const char *id, const ThrottleGroupProperties *properties,
                               GError **error)
{
    ThrottleConfig config;

    return throttle_config_parse(properties, &config, error) && check_free(id, error) &&
           throttle_group_add(id, &config, error);
}

bool qmp_object_add(const ObjectOptions *arg, GError **error)
{
    if (!is_identifier(arg->id)) {
        merino_error(error, "Parameter 'id' expects an identifier");
        merino_error_hint(error, "Identifiers consist of letters, digits, '-', '.', '_', "
                                 "starting with a letter.");
        return false;
    }
    switch (arg->qom_type) {
    case OBJECT_TYPE_IOTHREAD:
        return check_free(arg->id, error) && iothread_add(arg->id, error);
    case OBJECT_TYPE_THROTTLE_GROUP:
        return add_throttle_group(arg->id, &arg->u.throttle_group, error);
    default:
        g_assert_not_reached();
    }
}

bool qmp_object_del(const char *id, GError **error)
{
    return throttle_group_exists(id) ? throttle_group_delete(id, error)
                                     : iothread_delete(id, error);
}

IOThreadInfoList *qmp_query_iothreads(GError **error)
{
    return iothread_query();
}
