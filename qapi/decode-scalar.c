/* SPDX-License-Identifier: MIT */
/*
 * Decoding of single values, each in two forms: as JSON, and as the text of a key=value pair.
 *
 * QEMU names a value by its whole path when its type is wrong and by its last step when its value
 * is out of range or unknown; tools match these sentences, so they are kept.
 */
#include "decode-internal.h"
#include "util/error.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

static bool fail_expects(const char *name, const char *expected, GError **error)
{
    merino_error(error, "Parameter '%s' expects %s", name, expected);
    return false;
}

static bool fail_expects_full(const DecodePath *path, const char *expected, GError **error)
{
    g_autofree char *name = decode_path_full(path);

    return fail_expects(name, expected, error);
}

/* The text of a key=value pair. */
static const char *keyval_text(const DecodePath *path, const json_t *in, GError **error)
{
    g_autofree char *name = NULL;

    if (!json_is_string(in)) {
        name = decode_path_full(path);
        merino_error(error, "Parameters '%s.*' are unexpected", name);
        return NULL;
    }
    return json_string_value(in);
}

static bool decode_str(const DecodePath *path, const json_t *in, char **ret, GError **error)
{
    const char *text = NULL;

    if (path->mode == QAPI_DECODE_KEYVAL) {
        text = keyval_text(path, in, error);
    } else if (json_is_string(in)) {
        text = json_string_value(in);
    } else {
        decode_type_error(path, "string", error);
    }
    *ret = g_strdup(text);
    return text != NULL;
}

static bool decode_bool(const DecodePath *path, const json_t *in, bool *ret, GError **error)
{
    static const char *const yes[] = { "on", "yes", "true", "y", NULL };
    static const char *const no[] = { "off", "no", "false", "n", NULL };
    const char *text;

    if (path->mode == QAPI_DECODE_JSON) {
        *ret = json_is_true(in);
        return json_is_boolean(in) || decode_type_error(path, "boolean", error);
    }
    text = keyval_text(path, in, error);
    if (!text) {
        return false;
    }
    *ret = g_strv_contains(yes, text);
    return *ret || g_strv_contains(no, text) || fail_expects_full(path, "'on' or 'off'", error);
}

/* The whole of `text` as a number, decimal or with the prefix 0 or 0x. */
static bool parse_integer(const char *text, bool is_signed, int64_t *ret)
{
    char *end;

    errno = 0;
    if (is_signed) {
        *ret = g_ascii_strtoll(text, &end, 0);
    } else {
        *ret = (int64_t)g_ascii_strtoull(text, &end, 0);
    }
    return errno == 0 && end != text && *end == '\0';
}

/* Any 64-bit integer; unsigned ones as their two's complement. */
static bool decode_wide(const DecodePath *path, const json_t *in, bool is_signed, int64_t *ret,
                        GError **error)
{
    const char *text;

    if (path->mode == QAPI_DECODE_KEYVAL) {
        text = keyval_text(path, in, error);
        return text &&
               (parse_integer(text, is_signed, ret) || fail_expects_full(path, "integer", error));
    }
    *ret = json_integer_value(in);
    if (json_is_integer(in)) {
        return true;
    }
    return is_signed ? decode_type_error(path, "integer", error)
                     : fail_expects_full(path, "uint64", error);
}

static void store_integer(void *slot, size_t size, int64_t value)
{
    switch (size) {
    case 1:
        *(int8_t *)slot = (int8_t)value;
        break;
    case 2:
        *(int16_t *)slot = (int16_t)value;
        break;
    case 4:
        *(int32_t *)slot = (int32_t)value;
        break;
    default:
        *(int64_t *)slot = value;
        break;
    }
}

static bool decode_integer(const QapiType *type, const DecodePath *path, const json_t *in,
                           void *slot, GError **error)
{
    bool is_signed = type->kind == QAPI_INT;
    unsigned bits = type->size * 8;
    g_autofree char *expected = NULL;
    bool fits;
    int64_t value;

    if (!decode_wide(path, in, is_signed, &value, error)) {
        return false;
    }
    if (bits == 64) {
        fits = true;
    } else if (is_signed) {
        fits = value >= -(INT64_C(1) << (bits - 1)) && value < INT64_C(1) << (bits - 1);
    } else {
        fits = (uint64_t)value < UINT64_C(1) << bits;
    }
    if (!fits) {
        expected = g_strdup_printf("%s_t", type->name);
        return fail_expects(decode_path_local(path), expected, error);
    }
    store_integer(slot, type->size, value);
    return true;
}

static bool decode_size(const DecodePath *path, const json_t *in, void *slot, GError **error)
{
    const char *text;

    if (path->mode == QAPI_DECODE_JSON) {
        return decode_wide(path, in, false, slot, error);
    }
    text = keyval_text(path, in, error);
    return text && (size_parse(text, slot) == 0 || fail_expects_full(path, "size", error));
}

static bool decode_number(const DecodePath *path, const json_t *in, double *ret, GError **error)
{
    const char *text;
    char *end;

    if (path->mode == QAPI_DECODE_JSON) {
        *ret = json_number_value(in);
        return json_is_number(in) || decode_type_error(path, "number", error);
    }
    text = keyval_text(path, in, error);
    if (!text) {
        return false;
    }
    *ret = g_ascii_strtod(text, &end);
    return (end != text && *end == '\0') || decode_type_error(path, "number", error);
}

static bool decode_null(const DecodePath *path, const json_t *in, GError **error)
{
    const char *text;

    if (path->mode == QAPI_DECODE_JSON) {
        return json_is_null(in) || decode_type_error(path, "null", error);
    }
    text = keyval_text(path, in, error);
    return text && (*text == '\0' || decode_type_error(path, "null", error));
}

static bool decode_enum(const QapiType *type, const DecodePath *path, const json_t *in,
                        unsigned *ret, GError **error)
{
    g_autofree char *text = NULL;
    int value;

    if (!decode_str(path, in, &text, error)) {
        return false;
    }
    value = qapi_enum_parse(type, text);
    if (value < 0) {
        merino_error(error, "Parameter '%s' does not accept value '%s'", decode_path_local(path),
                     text);
        return false;
    }
    *ret = (unsigned)value;
    return true;
}

bool decode_scalar(const QapiType *type, const DecodePath *path, const json_t *in, void *slot,
                   GError **error)
{
    switch (type->kind) {
    case QAPI_STR:
        return decode_str(path, in, slot, error);
    case QAPI_BOOL:
        return decode_bool(path, in, slot, error);
    case QAPI_INT:
    case QAPI_UINT:
        return decode_integer(type, path, in, slot, error);
    case QAPI_SIZE:
        return decode_size(path, in, slot, error);
    case QAPI_NUMBER:
        return decode_number(path, in, slot, error);
    case QAPI_NULL:
        return decode_null(path, in, error);
    case QAPI_ENUM:
        return decode_enum(type, path, in, slot, error);
    default:
        g_assert(type->kind == QAPI_ANY);
        *(json_t **)slot = json_incref((json_t *)in);
        return true;
    }
}
