/* SPDX-License-Identifier: MIT */
/*
 * Freeing and cloning any value of the schema's types.
 *
 * Both walk the type's table. A "slot" is where a value stands: a member of a struct, an element of
 * a list, or the union of an alternate.
 */
#include "qapi/type.h"

#include <jansson.h>
#include <string.h>

#define BUILTIN(suffix, k, type)                                                                   \
    const QapiType qapi_type_##suffix = { .name = #suffix, .kind = k, .size = sizeof(type) }

BUILTIN(str, QAPI_STR, char *);
BUILTIN(bool, QAPI_BOOL, bool);
BUILTIN(int, QAPI_INT, int64_t);
BUILTIN(int8, QAPI_INT, int8_t);
BUILTIN(int16, QAPI_INT, int16_t);
BUILTIN(int32, QAPI_INT, int32_t);
BUILTIN(int64, QAPI_INT, int64_t);
BUILTIN(uint8, QAPI_UINT, uint8_t);
BUILTIN(uint16, QAPI_UINT, uint16_t);
BUILTIN(uint32, QAPI_UINT, uint32_t);
BUILTIN(uint64, QAPI_UINT, uint64_t);
BUILTIN(size, QAPI_SIZE, uint64_t);
BUILTIN(number, QAPI_NUMBER, double);
BUILTIN(null, QAPI_NULL, QapiNull);
BUILTIN(any, QAPI_ANY, json_t *);

bool qapi_type_is_pointer(const QapiType *type)
{
    switch (type->kind) {
    case QAPI_STR:
    case QAPI_ANY:
    case QAPI_LIST:
    case QAPI_OBJECT:
    case QAPI_ALTERNATE:
        return true;
    default:
        return false;
    }
}

size_t qapi_type_slot_size(const QapiType *type)
{
    return qapi_type_is_pointer(type) ? sizeof(void *) : type->size;
}

int qapi_enum_parse(const QapiType *type, const char *name)
{
    for (size_t i = 0; i < type->as.enumeration.count; i++) {
        if (g_str_equal(type->as.enumeration.names[i], name)) {
            return i;
        }
    }
    return -1;
}

/* The branch that a union's tag selects; NULL when it brings no members. */
static const QapiType *union_branch(const QapiType *type, const char *base)
{
    unsigned tag;

    if (!type->as.object.tag) {
        return NULL;
    }
    memcpy(&tag, base + type->as.object.tag->offset, sizeof(tag));
    if (tag >= type->as.object.tag->type->as.enumeration.count) {
        return NULL;
    }
    return type->as.object.branches[tag];
}

static const QapiType *alternate_branch(const QapiType *type, const char *base)
{
    unsigned which;

    memcpy(&which, base + type->as.alternate.type_offset, sizeof(which));
    return which < type->as.alternate.n_branches ? type->as.alternate.branches[which] : NULL;
}

/* --- free --- */

static void free_slot(const QapiType *type, void *slot)
{
    void *pointer;

    if (!qapi_type_is_pointer(type)) {
        return;
    }
    memcpy(&pointer, slot, sizeof(pointer));
    if (type->kind == QAPI_STR) {
        g_free(pointer);
    } else if (type->kind == QAPI_ANY) {
        json_decref(pointer);
    } else {
        qapi_value_free(type, pointer);
    }
}

static void free_members(const QapiType *type, char *base)
{
    const QapiType *branch = union_branch(type, base);

    if (branch) {
        free_members(branch, base + type->as.object.u_offset);
    }
    for (size_t i = 0; i < type->as.object.n_members; i++) {
        const QapiMember *member = &type->as.object.members[i];

        free_slot(member->type, base + member->offset);
    }
}

static void free_items(const QapiType *element, QapiList *list)
{
    size_t slot_size = qapi_type_slot_size(element);

    if (qapi_type_is_pointer(element)) {
        for (size_t i = 0; i < list->len; i++) {
            free_slot(element, (char *)list->items + i * slot_size);
        }
    }
    g_free(list->items);
}

void qapi_value_free(const QapiType *type, void *value)
{
    const QapiType *branch;

    if (!value) {
        return;
    }
    if (type->kind == QAPI_OBJECT) {
        free_members(type, value);
    } else if (type->kind == QAPI_LIST) {
        free_items(type->as.list.element, value);
    } else {
        g_assert(type->kind == QAPI_ALTERNATE);
        branch = alternate_branch(type, value);
        if (branch) {
            free_slot(branch, (char *)value + type->as.alternate.u_offset);
        }
    }
    g_free(value);
}

/* --- clone: copy the bytes, then give the copy pointers of its own --- */

static void clone_slot(const QapiType *type, void *slot)
{
    void *pointer;

    if (!qapi_type_is_pointer(type)) {
        return;
    }
    memcpy(&pointer, slot, sizeof(pointer));
    if (type->kind == QAPI_STR) {
        pointer = g_strdup(pointer);
    } else if (type->kind == QAPI_ANY) {
        json_incref(pointer);
    } else {
        pointer = qapi_value_clone(type, pointer);
    }
    memcpy(slot, &pointer, sizeof(pointer));
}

static void clone_members(const QapiType *type, char *base)
{
    const QapiType *branch = union_branch(type, base);

    if (branch) {
        clone_members(branch, base + type->as.object.u_offset);
    }
    for (size_t i = 0; i < type->as.object.n_members; i++) {
        const QapiMember *member = &type->as.object.members[i];

        clone_slot(member->type, base + member->offset);
    }
}

static void clone_items(const QapiType *element, QapiList *list)
{
    size_t slot_size = qapi_type_slot_size(element);
    const void *items = list->items;

    list->items = g_malloc_n(qapi_list_capacity(list->len), slot_size);
    if (list->len) {
        memcpy(list->items, items, list->len * slot_size);
    }
    for (size_t i = 0; i < list->len; i++) {
        clone_slot(element, (char *)list->items + i * slot_size);
    }
}

void *qapi_value_clone(const QapiType *type, const void *value)
{
    const QapiType *branch;
    void *copy;

    if (!value) {
        return NULL;
    }
    copy = g_memdup2(value, type->size);
    if (type->kind == QAPI_OBJECT) {
        clone_members(type, copy);
    } else if (type->kind == QAPI_LIST) {
        clone_items(type->as.list.element, copy);
    } else {
        g_assert(type->kind == QAPI_ALTERNATE);
        branch = alternate_branch(type, copy);
        if (branch) {
            clone_slot(branch, (char *)copy + type->as.alternate.u_offset);
        }
    }
    return copy;
}

/* --- lists --- */

void qapi_list_append(const QapiType *list_type, void *list, const void *item)
{
    size_t slot_size = qapi_type_slot_size(list_type->as.list.element);
    QapiList *self = list;

    if (self->len == qapi_list_capacity(self->len)) {
        self->items = g_realloc_n(self->items, qapi_list_capacity(self->len + 1), slot_size);
    }
    memcpy((char *)self->items + self->len * slot_size, item, slot_size);
    self->len++;
}
