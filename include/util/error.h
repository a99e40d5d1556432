/* SPDX-License-Identifier: MIT */
/*
 * Errors in words.
 *
 * A control-plane function that fails sets a GError of the domain MERINO_ERROR
 * and returns false, NULL or a negative errno. The code is the QMP error class;
 * the message names the object in single quotes, carries no trailing period or
 * newline, and is what a person and a QMP client will read.
 */
#ifndef MERINO_UTIL_ERROR_H
#define MERINO_UTIL_ERROR_H

#include <glib.h>

#define MERINO_ERROR (merino_error_quark())

/* The QMP error classes. Nearly everything is generic. */
typedef enum MerinoErrorClass {
    MERINO_ERROR_GENERIC,
    MERINO_ERROR_COMMAND_NOT_FOUND,
    MERINO_ERROR_DEVICE_NOT_ACTIVE,
    MERINO_ERROR_DEVICE_NOT_FOUND,
    MERINO_ERROR_KVM_MISSING_CAP,
} MerinoErrorClass;

GQuark merino_error_quark(void);

/* Set a generic error from a format. `error` may be NULL. */
void merino_error(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* Set a generic error: the formatted text, ": ", and the words for the positive errno `err`. */
void merino_error_errno(GError **error, int err, const char *format, ...) G_GNUC_PRINTF(3, 4);

/* Set an error of another class. */
void merino_error_class(GError **error, MerinoErrorClass error_class, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

/* Add a line of advice to an error that is set, for people at a terminal. It follows the message
 * after a newline; QMP does not carry it. */
void merino_error_hint(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* The message without hints. Caller frees. */
char *merino_error_text(const GError *error);

/* The QMP spelling of an error's class; GErrors of foreign domains are GenericError. */
const char *merino_error_class_name(const GError *error);

#endif
