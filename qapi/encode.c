/* SPDX-License-Identifier: MIT */
#include "qapi/codec.h"

#include <jansson.h>
#include <string.h>

/* Names of files and the like may be no UTF-8; JSON must be. */
static json_t *encode_str(const char *text)
{
    g_autofree char *valid = NULL;
    json_t *out = json_string(text ? text : "");

    if (!out) {
        valid = g_utf8_make_valid(text, -1);
        out = json_string(valid);
    }
    return out;
}

static int64_t load_int(const void *slot, size_t size)
{
    switch (size) {
    case 1:
        return *(const int8_t *)slot;
    case 2:
        return *(const int16_t *)slot;
    case 4:
        return *(const int32_t *)slot;
    default:
        return *(const int64_t *)slot;
    }
}

/* JSON integers are signed here: what is above INT64_MAX comes out as a real. */
static json_t *encode_uint(const void *slot, size_t size)
{
    uint64_t value = 0;

    switch (size) {
    case 1:
        value = *(const uint8_t *)slot;
        break;
    case 2:
        value = *(const uint16_t *)slot;
        break;
    case 4:
        value = *(const uint32_t *)slot;
        break;
    default:
        value = *(const uint64_t *)slot;
        break;
    }
    return value > INT64_MAX ? json_real((double)value) : json_integer((json_int_t)value);
}

static json_t *encode_enum(const QapiType *type, const void *slot)
{
    unsigned value = *(const unsigned *)slot;

    g_assert(value < type->as.enumeration.count);
    return json_string(type->as.enumeration.names[value]);
}

static json_t *encode_list(const QapiType *element, const QapiList *list)
{
    size_t slot_size = qapi_type_slot_size(element);
    json_t *out = json_array();

    for (size_t i = 0; list && i < list->len; i++) {
        json_array_append_new(out,
                              qapi_encode_slot(element, (const char *)list->items + i * slot_size));
    }
    return out;
}

static bool is_present(const QapiMember *member, const char *base)
{
    const void *pointer;

    if (!member->optional) {
        return true;
    }
    if (!qapi_type_is_pointer(member->type)) {
        return *(const bool *)(base + member->has_offset);
    }
    memcpy(&pointer, base + member->offset, sizeof(pointer));
    return pointer != NULL;
}

static void encode_members(const QapiType *type, const char *base, json_t *out)
{
    const QapiType *branch;

    for (size_t i = 0; i < type->as.object.n_members; i++) {
        const QapiMember *member = &type->as.object.members[i];

        if (is_present(member, base)) {
            json_object_set_new_nocheck(out, member->name,
                                        qapi_encode_slot(member->type, base + member->offset));
        }
    }
    if (type->as.object.tag) {
        branch = type->as.object.branches[*(const unsigned *)(base + type->as.object.tag->offset)];
        if (branch) {
            encode_members(branch, base + type->as.object.u_offset, out);
        }
    }
}

static json_t *encode_alternate(const QapiType *type, const char *base)
{
    unsigned which = *(const unsigned *)(base + type->as.alternate.type_offset);

    g_assert(which < type->as.alternate.n_branches);
    return qapi_encode_slot(type->as.alternate.branches[which], base + type->as.alternate.u_offset);
}

json_t *qapi_encode(const QapiType *type, const void *value)
{
    json_t *object;

    switch (type->kind) {
    case QAPI_LIST:
        return encode_list(type->as.list.element, value);
    case QAPI_ALTERNATE:
        return encode_alternate(type, value);
    default:
        g_assert(type->kind == QAPI_OBJECT);
        object = json_object();
        encode_members(type, value, object);
        return object;
    }
}

json_t *qapi_encode_slot(const QapiType *type, const void *slot)
{
    switch (type->kind) {
    case QAPI_STR:
        return encode_str(*(char *const *)slot);
    case QAPI_BOOL:
        return json_boolean(*(const bool *)slot);
    case QAPI_INT:
        return json_integer(load_int(slot, type->size));
    case QAPI_UINT:
    case QAPI_SIZE:
        return encode_uint(slot, type->size);
    case QAPI_NUMBER:
        return json_real(*(const double *)slot);
    case QAPI_NULL:
        return json_null();
    case QAPI_ANY:
        return json_incref(*(json_t *const *)slot);
    case QAPI_ENUM:
        return encode_enum(type, slot);
    default:
        return qapi_encode(type, *(void *const *)slot);
    }
}
