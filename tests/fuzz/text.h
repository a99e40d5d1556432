/* SPDX-License-Identifier: MIT */
/*
 * What targets have in common whose input is text.
 */
#ifndef MERINO_FUZZ_TEXT_H
#define MERINO_FUZZ_TEXT_H

#include "qapi/type.h"

/* The input as a string: up to a zero byte, and without a newline at its end. Caller frees. */
char *fuzz_text(const uint8_t *data, size_t size);

/* A function returned this result and this error: exactly one of them is there, and the error has
 * words that QMP can carry. Frees the error. */
void fuzz_check_outcome(bool ok, GError *error);

/* A decoded value survives being cloned, encoded, and decoded again. Frees the value. */
void fuzz_check_value(const QapiType *type, void *value);

#endif
