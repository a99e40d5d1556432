/* SPDX-License-Identifier: MIT */
/*
 * What is wrong with a JSON text, in QEMU's words instead of jansson's.
 */
#ifndef MERINO_QAPI_JSON_WORDS_H
#define MERINO_QAPI_JSON_WORDS_H

#include <glib.h>
#include <jansson.h>

/* The words for `problem`, which jansson found in `text`. Caller frees. */
char *json_problem_words(const json_error_t *problem, const char *text);

#endif
