/* SPDX-License-Identifier: MIT */
/*
 * Between JSON and the schema's C types.
 *
 * Decoding checks everything the schema says: names, types, ranges, which members are mandatory.
 * The first thing that is wrong makes the error, in QEMU's words, with the path of the
 * member ("file.file.filename", "actions[0].data") where QEMU gives the path. A decoded value
 * shares nothing with the JSON it came from, except values of type `any`, which are referenced.
 *
 * Integers are those of JSON texts below 2^63 in magnitude; an unsigned 64-bit member takes a
 * negative number as its two's complement, as QEMU does, and refuses what a JSON integer here
 * cannot hold.
 *
 * In which order an encoded object's members are printed is qapi/json.h's business.
 *
 * Calling context: any thread; nothing here has state.
 */
#ifndef MERINO_QAPI_CODEC_H
#define MERINO_QAPI_CODEC_H

#include "qapi/type.h"

typedef enum QapiDecodeMode {
    QAPI_DECODE_JSON,
    QAPI_DECODE_KEYVAL, /* from key=value text (qapi/keyval.h): all scalars are strings */
} QapiDecodeMode;

/* An object, alternate or list of the type from `in`, or NULL with an error. `in` may be NULL for
 * objects, which is an object without members. */
void *qapi_decode(const QapiType *type, const json_t *in, QapiDecodeMode mode, GError **error);

/* A new JSON value for the slot at `slot`; objects, alternates and lists: for a slot that points
 * at them. A NULL str is "", a NULL list is empty. */
json_t *qapi_encode_slot(const QapiType *type, const void *slot);
/* The same for an object, alternate or list itself. */
json_t *qapi_encode(const QapiType *type, const void *value);

#endif
