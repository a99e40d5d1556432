/* SPDX-License-Identifier: MIT */
/*
 * The decoder's own: where in the input it is, and the words for what is wrong there.
 */
#ifndef MERINO_QAPI_DECODE_INTERNAL_H
#define MERINO_QAPI_DECODE_INTERNAL_H

#include "qapi/codec.h"

#include <jansson.h>

/* One step from the outermost value inwards. Lives on the stack of the recursion. */
typedef struct DecodePath {
    const struct DecodePath *up; /* NULL: the outermost value */
    const char *name;            /* of the member; NULL: an element of a list */
    size_t index;                /* of the element */
    QapiDecodeMode mode;
} DecodePath;

/* "file.children[0].size"; "" for the outermost value. */
char *decode_path_full(const DecodePath *path);
/* The last step only. QEMU says "null" for elements of lists, and so do we. */
const char *decode_path_local(const DecodePath *path);

/* `expected` is a word like "integer". Always returns false. */
bool decode_type_error(const DecodePath *path, const char *expected, GError **error);

/* Kinds QAPI_STR to QAPI_ENUM. */
bool decode_scalar(const QapiType *type, const DecodePath *path, const json_t *in, void *slot,
                   GError **error);

#endif
