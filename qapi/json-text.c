/* SPDX-License-Identifier: MIT */
#include "qapi/json.h"

#include <stdint.h>
#include <string.h>

#define BUCKETS 512

typedef struct Entry {
    const char *name;
    const json_t *value;
    unsigned bucket;
    unsigned serial; /* its place in the object as built */
} Entry;

/* The string hash of tdb, the trivial database, which QEMU uses for its dictionaries. */
static uint32_t tdb_hash(const char *name)
{
    uint32_t value = 0x238F13AF * (uint32_t)strlen(name);

    for (unsigned i = 0; name[i]; i++) {
        value += (uint32_t)(unsigned char)name[i] << (i * 5 % 24);
    }
    return 1103515243 * value + 12345;
}

static int compare_entries(const void *a, const void *b)
{
    const Entry *left = a;
    const Entry *right = b;

    if (left->bucket != right->bucket) {
        return left->bucket < right->bucket ? -1 : 1;
    }
    return left->serial > right->serial ? -1 : 1;
}

static GArray *ordered_entries(const json_t *object)
{
    GArray *entries = g_array_sized_new(false, false, sizeof(Entry), json_object_size(object));
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)object, name, value)
    {
        Entry entry = { name, value, tdb_hash(name) % BUCKETS, entries->len };

        g_array_append_val(entries, entry);
    }
    g_array_sort(entries, compare_entries);
    return entries;
}

char **qapi_json_names(const json_t *object)
{
    g_autoptr(GArray) entries = ordered_entries(object);
    char **names = g_new0(char *, entries->len + 1);

    for (unsigned i = 0; i < entries->len; i++) {
        names[i] = g_strdup(g_array_index(entries, Entry, i).name);
    }
    return names;
}

static void put_escaped(GString *out, gunichar c)
{
    static const char plain[] = "\"\\\b\f\n\r\t";
    static const char letter[] = "\"\\bfnrt";
    const char *known = c < 128 && c ? strchr(plain, (int)c) : NULL;

    if (known) {
        g_string_append_c(out, '\\');
        g_string_append_c(out, letter[known - plain]);
    } else if (c < 0x10000) {
        g_string_append_printf(out, "\\u%04X", c);
    } else {
        c -= 0x10000;
        g_string_append_printf(out, "\\u%04X\\u%04X", 0xd800 + (c >> 10), 0xdc00 + (c & 0x3ff));
    }
}

/* How many bytes from `at` on stand for themselves. */
static size_t plain_length(const char *at, const char *end)
{
    const char *start = at;

    while (at < end && *at >= 0x20 && *at < 0x7f && *at != '"' && *at != '\\') {
        at++;
    }
    return at - start;
}

/* jansson holds nothing but valid UTF-8. */
static void put_string(GString *out, const char *text, size_t len)
{
    const char *end = text + len;

    g_string_append_c(out, '"');
    for (const char *at = text; at < end; at = g_utf8_next_char(at)) {
        size_t plain = plain_length(at, end);

        g_string_append_len(out, at, plain);
        at += plain;
        if (at == end) {
            break;
        }
        put_escaped(out, g_utf8_get_char(at));
    }
    g_string_append_c(out, '"');
}

/* Seventeen digits bring any double back exactly. */
static void put_real(GString *out, double value)
{
    char digits[G_ASCII_DTOSTR_BUF_SIZE];

    g_string_append(out, g_ascii_formatd(digits, sizeof(digits), "%.17g", value));
}

static void put_break(GString *out, bool pretty, unsigned depth)
{
    if (pretty) {
        g_string_append_printf(out, "\n%*s", (int)(depth * 4), "");
    }
}

static void put_value(GString *out, const json_t *value, bool pretty, unsigned depth);

static void put_object(GString *out, const json_t *object, bool pretty, unsigned depth)
{
    g_autoptr(GArray) entries = ordered_entries(object);

    g_string_append_c(out, '{');
    for (unsigned i = 0; i < entries->len; i++) {
        const Entry *entry = &g_array_index(entries, Entry, i);

        if (i > 0) {
            g_string_append(out, pretty ? "," : ", ");
        }
        put_break(out, pretty, depth + 1);
        put_string(out, entry->name, strlen(entry->name));
        g_string_append(out, ": ");
        put_value(out, entry->value, pretty, depth + 1);
    }
    put_break(out, pretty, depth);
    g_string_append_c(out, '}');
}

static void put_array(GString *out, const json_t *array, bool pretty, unsigned depth)
{
    g_string_append_c(out, '[');
    for (size_t i = 0; i < json_array_size(array); i++) {
        if (i > 0) {
            g_string_append(out, pretty ? "," : ", ");
        }
        put_break(out, pretty, depth + 1);
        put_value(out, json_array_get(array, i), pretty, depth + 1);
    }
    put_break(out, pretty, depth);
    g_string_append_c(out, ']');
}

static void put_value(GString *out, const json_t *value, bool pretty, unsigned depth)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        put_object(out, value, pretty, depth);
        break;
    case JSON_ARRAY:
        put_array(out, value, pretty, depth);
        break;
    case JSON_STRING:
        put_string(out, json_string_value(value), json_string_length(value));
        break;
    case JSON_INTEGER:
        g_string_append_printf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        break;
    case JSON_REAL:
        put_real(out, json_real_value(value));
        break;
    case JSON_TRUE:
        g_string_append(out, "true");
        break;
    case JSON_FALSE:
        g_string_append(out, "false");
        break;
    case JSON_NULL:
        g_string_append(out, "null");
        break;
    }
}

char *qapi_json_text(const json_t *value, bool pretty)
{
    GString *out = g_string_new(NULL);

    put_value(out, value, pretty, 0);
    return g_string_free(out, false);
}
