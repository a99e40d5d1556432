/* SPDX-License-Identifier: MIT */
#include "util/error.h"

#include <stdarg.h>
#include <string.h>

/* What a MERINO_ERROR carries beyond a GError: how much of the end of its message is hints. */
typedef struct MerinoErrorPrivate {
    size_t hint_bytes;
} MerinoErrorPrivate;

static void merino_error_private_init(MerinoErrorPrivate *private)
{
    private->hint_bytes = 0;
}

static void merino_error_private_copy(const MerinoErrorPrivate *from, MerinoErrorPrivate *to)
{
    *to = *from;
}

static void merino_error_private_clear(MerinoErrorPrivate *private)
{
}

G_DEFINE_EXTENDED_ERROR(MerinoError, merino_error)

static void set_error(GError **error, MerinoErrorClass error_class, char *message)
{
    g_set_error_literal(error, MERINO_ERROR, error_class, message);
    g_free(message);
}

void merino_error(GError **error, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    set_error(error, MERINO_ERROR_GENERIC, g_strdup_vprintf(format, args));
    va_end(args);
}

void merino_error_errno(GError **error, int err, const char *format, ...)
{
    g_autofree char *what = NULL;
    va_list args;

    va_start(args, format);
    what = g_strdup_vprintf(format, args);
    va_end(args);
    set_error(error, MERINO_ERROR_GENERIC, g_strdup_printf("%s: %s", what, g_strerror(err)));
}

void merino_error_class(GError **error, MerinoErrorClass error_class, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    set_error(error, error_class, g_strdup_vprintf(format, args));
    va_end(args);
}

void merino_error_hint(GError **error, const char *format, ...)
{
    g_autofree char *hint = NULL;
    char *message;
    va_list args;

    if (!error || !*error || (*error)->domain != MERINO_ERROR) {
        return;
    }
    va_start(args, format);
    hint = g_strdup_vprintf(format, args);
    va_end(args);
    message = g_strconcat((*error)->message, "\n", hint, NULL);
    g_free((*error)->message);
    (*error)->message = message;
    merino_error_get_private(*error)->hint_bytes += strlen(hint) + 1;
}

char *merino_error_text(const GError *error)
{
    size_t hint_bytes =
        error->domain == MERINO_ERROR ? merino_error_get_private(error)->hint_bytes : 0;

    return g_strndup(error->message, strlen(error->message) - hint_bytes);
}

const char *merino_error_class_name(const GError *error)
{
    static const char *const names[] = {
        [MERINO_ERROR_GENERIC] = "GenericError",
        [MERINO_ERROR_COMMAND_NOT_FOUND] = "CommandNotFound",
        [MERINO_ERROR_DEVICE_NOT_ACTIVE] = "DeviceNotActive",
        [MERINO_ERROR_DEVICE_NOT_FOUND] = "DeviceNotFound",
        [MERINO_ERROR_KVM_MISSING_CAP] = "KVMMissingCap",
    };

    if (error->domain != MERINO_ERROR) {
        return names[MERINO_ERROR_GENERIC];
    }
    return names[error->code];
}
