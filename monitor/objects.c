/* SPDX-License-Identifier: MIT */
/*
 * The registry of objects made by users: object-add and object-del. Ids are unique among
 * objects of all types; today's only type is `iothread`.
 */
#include "block/iothread.h"
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
        return iothread_add(arg->id, error);
    default:
        g_assert_not_reached();
    }
}

bool qmp_object_del(const char *id, GError **error)
{
    return iothread_delete(id, error);
}

IOThreadInfoList *qmp_query_iothreads(GError **error)
{
    return iothread_query();
}
