/* SPDX-License-Identifier: MIT */
#include "text.h"

#include "qapi/codec.h"
#include "qapi/json.h"
#include "util/error.h"

#include <string.h>

char *fuzz_text(const uint8_t *data, size_t size)
{
    if (size && data[size - 1] == '\n') {
        size--;
    }
    return g_strndup((const char *)data, size);
}

void fuzz_check_outcome(bool ok, GError *error)
{
    g_assert(ok == !error);
    if (error) {
        g_autofree char *words = merino_error_text(error);

        g_assert(*words && !g_str_has_suffix(words, "\n"));
        g_error_free(error);
    }
}

/* The same in JSON, made from text again, as a client would see it. */
static json_t *encode(const QapiType *type, const void *value)
{
    json_t *json = qapi_encode(type, value);
    g_autofree char *text = qapi_json_text(json, false);
    json_t *again = qapi_json_parse(text, strlen(text), NULL);

    g_assert(again);
    json_decref(json);
    return again;
}

static bool has_real(const json_t *value)
{
    const char *name;
    json_t *member;
    size_t i;

    json_object_foreach((json_t *)value, name, member)
    {
        if (has_real(member)) {
            return true;
        }
    }
    json_array_foreach(value, i, member)
    {
        if (has_real(member)) {
            return true;
        }
    }
    return json_is_real(value);
}

void fuzz_check_value(const QapiType *type, void *value)
{
    void *clone = qapi_value_clone(type, value);
    json_auto_t *first = encode(type, value);
    json_auto_t *second = encode(type, clone);
    json_auto_t *third = NULL;
    void *decoded;

    qapi_value_free(type, value);
    qapi_value_free(type, clone);
    g_assert(json_equal(first, second));
    /* An unsigned number above INT64_MAX is printed as a real, which is no integer to decode. */
    if (has_real(first)) {
        return;
    }
    decoded = qapi_decode(type, first, QAPI_DECODE_JSON, NULL);
    g_assert(decoded);
    third = encode(type, decoded);
    g_assert(json_equal(first, third));
    qapi_value_free(type, decoded);
}
