/* SPDX-License-Identifier: MIT */
/*
 * Descriptions of the schema's types, and what can be done with any value of them.
 *
 * The generator writes one QapiType for each type of the schema; freeing, cloning, decoding and
 * encoding are each one walk over these tables. Code outside of qapi/ uses the typed functions of
 * the generated headers (blockdev_options_free() and so on), which call these.
 *
 * How a member of an object stands in its C struct (its "slot"):
 *   str                    char *            NULL when absent
 *   object, alternate      Foo *             NULL when absent
 *   list                   FooList *         NULL when absent; an empty list is not NULL
 *   any                    json_t *          NULL when absent
 *   bool, integers,        the value itself, and `bool has_x` before it when optional
 *   number, enum, null
 * Every pointer is owned by the value that it is in. An all-zero struct is a valid value to free.
 */
#ifndef MERINO_QAPI_TYPE_H
#define MERINO_QAPI_TYPE_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct json_t json_t; /* as in <jansson.h>, which users of the C types do not need */

typedef enum QapiKind {
    QAPI_STR,
    QAPI_BOOL,
    QAPI_INT,  /* signed, 1 to 8 bytes */
    QAPI_UINT, /* unsigned, 1 to 8 bytes */
    QAPI_SIZE, /* uint64_t, written as "64k" where text is given */
    QAPI_NUMBER,
    QAPI_NULL,
    QAPI_ANY,
    QAPI_ENUM,
    QAPI_LIST,
    QAPI_OBJECT,
    QAPI_ALTERNATE,
} QapiKind;

typedef struct QapiType QapiType;

typedef struct QapiMember {
    const char *name; /* as in JSON */
    const QapiType *type;
    size_t offset;
    size_t has_offset; /* of the flag has_x; only if optional and not a pointer */
    bool optional;
} QapiMember;

struct QapiType {
    const char *name; /* as in the schema */
    QapiKind kind;
    size_t size; /* of the slot; of the struct for objects, alternates and lists */
    union {
        struct {
            const char *const *names;
            size_t count;
        } enumeration;
        struct {
            const QapiType *element;
        } list;
        struct {
            const QapiMember *members; /* those of the base first, without the branches' */
            size_t n_members;
            const QapiMember *tag;           /* NULL: not a union */
            const QapiType *const *branches; /* by the tag's value; NULL: no further members */
            size_t u_offset;                 /* where a branch's struct begins */
        } object;
        struct {
            const QapiType *const *branches; /* by the value of `type` */
            size_t n_branches;
            size_t type_offset;
            size_t u_offset;
        } alternate;
    } as;
};

/* The C shape of every list: `items` is an array of slots. */
typedef struct QapiList {
    size_t len;
    void *items;
} QapiList;

/* The slot of the type `null`, which has only one value. */
typedef char QapiNull;

/* The builtin types. */
extern const QapiType qapi_type_str, qapi_type_bool, qapi_type_int, qapi_type_int8, qapi_type_int16,
    qapi_type_int32, qapi_type_int64, qapi_type_uint8, qapi_type_uint16, qapi_type_uint32,
    qapi_type_uint64, qapi_type_size, qapi_type_number, qapi_type_null, qapi_type_any;

/* Whether a slot of the type holds a pointer. */
bool qapi_type_is_pointer(const QapiType *type);
/* Bytes of a slot of the type. */
size_t qapi_type_slot_size(const QapiType *type);

/* Objects, alternates and lists on the heap. NULL ok. */
void qapi_value_free(const QapiType *type, void *value);
void *qapi_value_clone(const QapiType *type, const void *value);

/* For how many items the list has room, so that most appending takes no new memory. */
static inline size_t qapi_list_capacity(size_t len)
{
    return len < 2 ? len : (size_t)1 << g_bit_storage(len - 1);
}

/* Append the slot at `item`, whose pointer (if it is one) the list then owns. */
void qapi_list_append(const QapiType *list_type, void *list, const void *item);

/* The enum's value of that name, or -1. */
int qapi_enum_parse(const QapiType *type, const char *name);

#endif
