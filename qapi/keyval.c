/* SPDX-License-Identifier: MIT */
#include "qapi/keyval.h"
#include "qapi/json.h"
#include "util/error.h"

#include <string.h>

/* --- names --- */

static size_t span_word(const char *text, const char *end)
{
    const char *at = text;

    while (at < end && (g_ascii_isalnum(*at) || *at == '-' || *at == '_')) {
        at++;
    }
    return at - text;
}

/* Length of a prefix like "__com.example_" that sets vendors' names apart; 0 if there is none. */
static size_t span_vendor(const char *text, const char *end)
{
    const char *at = text + 2;

    if (end - text < 3 || memcmp(text, "__", 2) != 0) {
        return 0;
    }
    while (at < end && (g_ascii_isalnum(*at) || *at == '-' || *at == '.')) {
        at++;
    }
    return at > text + 2 && at < end && *at == '_' ? at + 1 - text : 0;
}

/* Length of the name or number that a key's step consists of; 0 if it is neither. */
static size_t span_step(const char *text, const char *end, bool first)
{
    size_t vendor = span_vendor(text, end);
    const char *name = text + vendor;
    size_t digits = 0;

    if (name < end && g_ascii_isalpha(*name)) {
        return vendor + span_word(name, end);
    }
    while (!first && text + digits < end && g_ascii_isdigit(text[digits])) {
        digits++;
    }
    return digits;
}

/* --- one pair into the tree --- */

static bool fail_inconsistent(const char *key, const char *end, GError **error)
{
    merino_error(error, "Parameters '%.*s.*' used inconsistently", (int)(end - key), key);
    return false;
}

static bool check_step(const char *key, const char *key_end, const char *step, size_t len,
                       GError **error)
{
    if (len > KEYVAL_MAX_STEP) {
        merino_error(error, "Parameter%s '%.*s' is too long",
                     (size_t)(key_end - key) == len ? "" : " fragment", (int)len, step);
        return false;
    }
    if (len == 0 || (step + len < key_end && step[len] != '.')) {
        merino_error(error, "Invalid parameter '%.*s'", (int)(key_end - key), key);
        return false;
    }
    return true;
}

static bool put_value(json_t *object, const char *name, const char *key, const char *end,
                      const char *value, GError **error)
{
    json_t *text;

    if (json_is_object(json_object_get(object, name))) {
        return fail_inconsistent(key, end, error);
    }
    text = json_string(value);
    if (!text) {
        merino_error(error, "Parameter '%.*s' is not valid UTF-8", (int)(end - key), key);
        return false;
    }
    json_object_set_new(object, name, text);
    return true;
}

/* Walk down the steps of the key, making objects on the way. */
static bool put_pair(json_t *root, const char *key, const char *key_end, const char *value,
                     GError **error)
{
    json_t *object = root;
    unsigned depth = 0;

    for (const char *step = key;;) {
        size_t len = span_step(step, key_end, step == key);
        g_autofree char *name = g_strndup(step, len);
        json_t *next;

        if (++depth > KEYVAL_MAX_STEPS) {
            merino_error(error, "A parameter's name has more than %d steps", KEYVAL_MAX_STEPS);
            return false;
        }
        if (!check_step(key, key_end, step, len, error)) {
            return false;
        }
        if (step + len == key_end) {
            return put_value(object, name, key, key_end, value, error);
        }
        next = json_object_get(object, name);
        if (!next) {
            next = json_object();
            json_object_set_new(object, name, next);
        } else if (!json_is_object(next)) {
            return fail_inconsistent(key, step + len, error);
        }
        object = next;
        step += len + 1;
    }
}

/* --- text into pairs --- */

/* The value that begins at `text`, with commas single again; `*ret_end` is after its end. */
static char *take_value(const char *text, const char **ret_end)
{
    GString *value = g_string_new(NULL);

    while (*text && (*text != ',' || text[1] == ',')) {
        text += *text == ',';
        g_string_append_c(value, *text++);
    }
    *ret_end = text;
    return g_string_free(value, false);
}

static bool is_help(const char *text, const char *end)
{
    return (end - text == 4 && memcmp(text, "help", 4) == 0) || (end - text == 1 && *text == '?');
}

/* Take in the pair at `*text` and step behind it. */
static bool parse_pair(json_t *root, const char **text, const char *implied_key, bool *ret_help,
                       GError **error)
{
    const char *key = *text;
    const char *key_end = key + strcspn(key, "=,");
    g_autofree char *value = NULL;

    if (*key_end != '=' && is_help(key, key_end)) {
        if (!ret_help) {
            merino_error(error, "Help is not available for this option");
            return false;
        }
        *ret_help = true;
        *text = key_end;
        return true;
    }
    if (*key_end == '=') {
        value = take_value(key_end + 1, text);
        return put_pair(root, key, key_end, value, error);
    }
    if (implied_key && key_end > key) {
        value = take_value(key, text);
        return put_pair(root, implied_key, implied_key + strlen(implied_key), value, error);
    }
    if (span_step(key, key_end, true) == 0) {
        merino_error(error, "Invalid parameter '%.*s'", (int)(key_end - key), key);
    } else {
        merino_error(error, "Expected '=' after parameter '%.*s'", (int)(key_end - key), key);
    }
    return false;
}

/* --- objects with numbers for keys become lists --- */

static bool is_index(const char *name)
{
    return g_ascii_isdigit(*name);
}

/* The members by their indices, borrowed, with NULL where there is none. Indices may have leading
 * zeros: 0 and 00 are the same, and the first one counts. */
static json_t **list_elements(json_t *object)
{
    size_t n = json_object_size(object);
    json_t **elements = g_new0(json_t *, n);
    const char *name;
    json_t *value;

    json_object_foreach(object, name, value)
    {
        guint64 index = g_ascii_strtoull(name, NULL, 10);

        if (index < n && !elements[index]) {
            elements[index] = value;
        }
    }
    return elements;
}

static json_t *make_list(json_t *object, const char *path, GError **error)
{
    g_autofree json_t **elements = list_elements(object);
    json_t *list = json_array();

    for (size_t i = 0; i < json_object_size(object); i++) {
        if (!elements[i]) {
            merino_error(error, "Parameter '%s.%zu' missing", path, i);
            json_decref(list);
            return NULL;
        }
        json_array_append(list, elements[i]);
    }
    return list;
}

/* Whether the object is to be a list: all of its keys are numbers. */
static bool check_keys(json_t *object, const char *path, bool *ret_list, GError **error)
{
    size_t indices = 0;
    const char *name;
    json_t *value;

    json_object_foreach(object, name, value)
    {
        indices += is_index(name);
    }
    if (indices != 0 && indices != json_object_size(object)) {
        merino_error(error, "Parameters '%s.*' used inconsistently", path);
        return false;
    }
    *ret_list = indices != 0;
    return true;
}

/* Turn lists at any depth of `object`, whose key is `path`, into lists; the inner ones first. */
static bool convert_lists(json_t *object, const char *path, GError **error)
{
    const char *name;
    json_t *value;
    void *next;

    json_object_foreach_safe(object, next, name, value)
    {
        g_autofree char *inner = g_strdup_printf("%s%s%s", path, *path ? "." : "", name);
        bool is_list;
        json_t *list;

        if (!json_is_object(value)) {
            continue;
        }
        if (!convert_lists(value, inner, error) || !check_keys(value, inner, &is_list, error)) {
            return false;
        }
        if (is_list) {
            list = make_list(value, inner, error);
            if (!list) {
                return false;
            }
            json_object_set_new(object, name, list);
        }
    }
    return true;
}

/* --- */

json_t *keyval_parse(const char *text, const char *implied_key, bool *ret_help, GError **error)
{
    json_t *root = json_object();

    while (*text) {
        if (!parse_pair(root, &text, implied_key, ret_help, error)) {
            json_decref(root);
            return NULL;
        }
        implied_key = NULL;
        text += *text == ',';
    }
    if (!convert_lists(root, "", error)) {
        json_decref(root);
        return NULL;
    }
    return root;
}

json_t *option_parse(const char *text, const char *implied_key, QapiDecodeMode *ret_mode,
                     bool *ret_help, GError **error)
{
    if (*text == '{') {
        *ret_mode = QAPI_DECODE_JSON;
        return qapi_json_parse(text, strlen(text), error);
    }
    *ret_mode = QAPI_DECODE_KEYVAL;
    return keyval_parse(text, implied_key, ret_help, error);
}

void *option_decode(const QapiType *type, const char *text, const char *implied_key, GError **error)
{
    QapiDecodeMode mode;
    json_auto_t *value = option_parse(text, implied_key, &mode, NULL, error);

    return value ? qapi_decode(type, value, mode, error) : NULL;
}
