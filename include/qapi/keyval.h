/* SPDX-License-Identifier: MIT */
/*
 * Options as people write them on a command line: key=value,key=value,...
 *
 * A key is a path: `file.driver=raw` is the member `driver` of the member `file`. Steps that are
 * numbers make a list; it must have all of its elements from 0 on. A comma inside of a value is
 * written twice. The first pair may be a mere value where its key is implied. A key given
 * again wins over the earlier one.
 *
 * All values are strings afterwards; decode them with QAPI_DECODE_KEYVAL. Errors are in QEMU's
 * words.
 *
 * Calling context: any thread.
 */
#ifndef MERINO_QAPI_KEYVAL_H
#define MERINO_QAPI_KEYVAL_H

#include "qapi/codec.h"

#define KEYVAL_MAX_STEP  127  /* bytes of one step of a key */
#define KEYVAL_MAX_STEPS 1024 /* of one key */

/* A JSON object of strings, lists and objects. `implied_key` may be NULL. Where a pair is the mere
 * word `help` or `?`, `*ret_help` becomes true and the pair is passed over; with NULL `ret_help`
 * that is an error. */
json_t *keyval_parse(const char *text, const char *implied_key, bool *ret_help, GError **error);

/* The same, or JSON if `text` begins with a brace; `*ret_mode` says which, for decoding. */
json_t *option_parse(const char *text, const char *implied_key, QapiDecodeMode *ret_mode,
                     bool *ret_help, GError **error);

/* Parse and decode in one go, for options without help. */
void *option_decode(const QapiType *type, const char *text, const char *implied_key,
                    GError **error);

#endif
