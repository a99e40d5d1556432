/* SPDX-License-Identifier: MIT */
#include "decode-internal.h"
#include "util/error.h"

#include <string.h>

/* --- paths --- */

static void put_path(GString *out, const DecodePath *path)
{
    if (!path->up) {
        return;
    }
    put_path(out, path->up);
    if (path->name) {
        g_string_append_printf(out, "%s%s", out->len ? "." : "", path->name);
    } else {
        g_string_append_printf(out, path->mode == QAPI_DECODE_KEYVAL ? ".%zu" : "[%zu]",
                               path->index);
    }
}

char *decode_path_full(const DecodePath *path)
{
    GString *out = g_string_new(NULL);

    put_path(out, path);
    return g_string_free(out, false);
}

const char *decode_path_local(const DecodePath *path)
{
    return path->name ? path->name : "null";
}

bool decode_type_error(const DecodePath *path, const char *expected, GError **error)
{
    g_autofree char *name = decode_path_full(path);

    merino_error(error, "Invalid parameter type for '%s', expected: %s", name, expected);
    return false;
}

/* --- objects --- */

static bool decode_slot(const QapiType *type, const DecodePath *path, const json_t *in, void *slot,
                        GError **error);

static const QapiType *selected_branch(const QapiType *type, const char *base)
{
    const QapiMember *tag = type->as.object.tag;

    return tag ? type->as.object.branches[*(const unsigned *)(base + tag->offset)] : NULL;
}

/* Adds the number of members found to `*found`. */
static bool decode_members(const QapiType *type, const DecodePath *path, const json_t *in,
                           char *base, size_t *found, GError **error)
{
    const QapiType *branch;

    for (size_t i = 0; i < type->as.object.n_members; i++) {
        const QapiMember *member = &type->as.object.members[i];
        DecodePath step = { path, member->name, 0, path->mode };
        const json_t *value = json_object_get(in, member->name);
        g_autofree char *name = NULL;

        if (value) {
            if (!decode_slot(member->type, &step, value, base + member->offset, error)) {
                return false;
            }
            if (member->optional && !qapi_type_is_pointer(member->type)) {
                *(bool *)(base + member->has_offset) = true;
            }
            (*found)++;
        } else if (!member->optional) {
            name = decode_path_full(&step);
            merino_error(error, "Parameter '%s' is missing", name);
            return false;
        }
    }
    branch = selected_branch(type, base);
    return !branch ||
           decode_members(branch, path, in, base + type->as.object.u_offset, found, error);
}

static bool has_member(const QapiType *type, const char *base, const char *name)
{
    const QapiType *branch = selected_branch(type, base);

    for (size_t i = 0; i < type->as.object.n_members; i++) {
        if (g_str_equal(type->as.object.members[i].name, name)) {
            return true;
        }
    }
    return branch && has_member(branch, base + type->as.object.u_offset, name);
}

static bool fail_unexpected(const QapiType *type, const DecodePath *path, const json_t *in,
                            const char *base, GError **error)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)in, name, value)
    {
        DecodePath step = { path, name, 0, path->mode };

        if (!has_member(type, base, name)) {
            g_autofree char *full = decode_path_full(&step);

            merino_error(error, "Parameter '%s' is unexpected", full);
            break;
        }
    }
    return false;
}

static bool decode_object(const QapiType *type, const DecodePath *path, const json_t *in,
                          void *value, GError **error)
{
    size_t found = 0;

    if (!json_is_object(in)) {
        return decode_type_error(path, "object", error);
    }
    if (!decode_members(type, path, in, value, &found, error)) {
        return false;
    }
    return found == json_object_size(in) || fail_unexpected(type, path, in, value, error);
}

/* --- lists --- */

static bool decode_list(const QapiType *type, const DecodePath *path, const json_t *in,
                        QapiList *list, GError **error)
{
    const QapiType *element = type->as.list.element;
    size_t slot_size = qapi_type_slot_size(element);

    if (!json_is_array(in)) {
        return decode_type_error(path, "array", error);
    }
    list->items = g_malloc0_n(qapi_list_capacity(json_array_size(in)), slot_size);
    for (size_t i = 0; i < json_array_size(in); i++) {
        DecodePath step = { path, NULL, i, path->mode };

        list->len = i + 1;
        if (!decode_slot(element, &step, json_array_get(in, i), (char *)list->items + i * slot_size,
                         error)) {
            return false;
        }
    }
    return true;
}

/* --- alternates --- */

static bool kind_accepts(const QapiType *type, const json_t *in, QapiDecodeMode mode)
{
    switch (type->kind) {
    case QAPI_STR:
    case QAPI_ENUM:
        return json_is_string(in);
    case QAPI_LIST:
        return json_is_array(in);
    case QAPI_OBJECT:
        return json_is_object(in);
    default:
        break;
    }
    if (mode == QAPI_DECODE_KEYVAL) {
        return json_is_string(in);
    }
    if (type->kind == QAPI_BOOL) {
        return json_is_boolean(in);
    }
    return type->kind == QAPI_NULL ? json_is_null(in) : json_is_number(in);
}

/* The first branch that takes this kind of JSON; a string branch before all others, because in
 * key=value text everything is a string. */
static int alternate_branch(const QapiType *type, const json_t *in, QapiDecodeMode mode)
{
    int found = -1;

    for (size_t i = 0; i < type->as.alternate.n_branches; i++) {
        const QapiType *branch = type->as.alternate.branches[i];

        if (!kind_accepts(branch, in, mode)) {
            continue;
        }
        if (branch->kind == QAPI_STR || branch->kind == QAPI_ENUM) {
            return (int)i;
        }
        if (found < 0) {
            found = (int)i;
        }
    }
    return found;
}

static bool decode_alternate(const QapiType *type, const DecodePath *path, const json_t *in,
                             char *value, GError **error)
{
    int which = alternate_branch(type, in, path->mode);

    if (which < 0) {
        merino_error(error, "Invalid parameter type for '%s', expected: %s",
                     decode_path_local(path), type->name);
        return false;
    }
    *(unsigned *)(value + type->as.alternate.type_offset) = (unsigned)which;
    return decode_slot(type->as.alternate.branches[which], path, in,
                       value + type->as.alternate.u_offset, error);
}

/* --- any type --- */

/* Fills the all-zero `value`; on failure what is in it can be freed. */
static bool decode_value(const QapiType *type, const DecodePath *path, const json_t *in,
                         void *value, GError **error)
{
    switch (type->kind) {
    case QAPI_OBJECT:
        return decode_object(type, path, in, value, error);
    case QAPI_LIST:
        return decode_list(type, path, in, value, error);
    default:
        g_assert(type->kind == QAPI_ALTERNATE);
        return decode_alternate(type, path, in, value, error);
    }
}

static bool decode_slot(const QapiType *type, const DecodePath *path, const json_t *in, void *slot,
                        GError **error)
{
    if (type->kind < QAPI_LIST) {
        return decode_scalar(type, path, in, slot, error);
    }
    *(void **)slot = g_malloc0(type->size);
    return decode_value(type, path, in, *(void **)slot, error);
}

void *qapi_decode(const QapiType *type, const json_t *in, QapiDecodeMode mode, GError **error)
{
    DecodePath root = { .mode = mode };
    json_auto_t *empty = NULL;
    void *value;

    if (!in && type->kind == QAPI_OBJECT) {
        in = empty = json_object();
    }
    value = g_malloc0(type->size);
    if (!decode_value(type, &root, in, value, error)) {
        qapi_value_free(type, value);
        return NULL;
    }
    return value;
}
