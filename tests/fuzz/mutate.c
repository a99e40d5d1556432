/* SPDX-License-Identifier: MIT */
#include "mutate.h"

#include "util/error.h"

#include <stdbool.h>
#include <string.h>

#define MAX_STEPS     6  /* of damage to one input */
#define LONG_REPEAT   64 /* one repetition in as many is of thousands */
#define REPEATS_FEW   8
#define REPEATS_MANY  4096
#define INSERTED_MAX  32
#define SCRAMBLED_MAX 8

/* --- the dictionary --- */

static bool unescape(const char **at, GByteArray *word)
{
    const char *p = *at;
    guint8 byte;

    if (*p != '\\') {
        byte = (guint8)*p++;
    } else if (p[1] == 'x' && g_ascii_isxdigit(p[2]) && g_ascii_isxdigit(p[3])) {
        byte = (guint8)(g_ascii_xdigit_value(p[2]) * 16 + g_ascii_xdigit_value(p[3]));
        p += 4;
    } else if (p[1] == '\\' || p[1] == '"') {
        byte = (guint8)p[1];
        p += 2;
    } else {
        return false;
    }
    g_byte_array_append(word, &byte, 1);
    *at = p;
    return true;
}

static GBytes *parse_word(const char *line)
{
    const char *at = strchr(line, '"');
    GByteArray *word = g_byte_array_new();

    for (at = at ? at + 1 : ""; *at && *at != '"';) {
        if (!unescape(&at, word)) {
            break;
        }
    }
    if (*at != '"' || word->len == 0) {
        g_byte_array_free(word, TRUE);
        return NULL;
    }
    return g_byte_array_free_to_bytes(word);
}

GPtrArray *mutate_read_dictionary(const char *path, GError **error)
{
    GPtrArray *words = g_ptr_array_new_with_free_func((GDestroyNotify)g_bytes_unref);
    g_auto(GStrv) lines = NULL;
    g_autofree char *text = NULL;

    if (!g_file_get_contents(path, &text, NULL, error)) {
        g_ptr_array_free(words, TRUE);
        return NULL;
    }
    lines = g_strsplit(text, "\n", -1);
    for (guint i = 0; lines[i]; i++) {
        const char *line = g_strchug(lines[i]);
        GBytes *word;

        if (*line == '\0' || *line == '#') {
            continue;
        }
        word = parse_word(line);
        if (!word) {
            merino_error(error, "'%s' line %u is no word of a dictionary", path, i + 1);
            g_ptr_array_free(words, TRUE);
            return NULL;
        }
        g_ptr_array_add(words, word);
    }
    return words;
}

/* --- choices --- */

/* 0 to `limit` - 1; `limit` is at least 1. */
static guint pick(const MutationSource *source, guint limit)
{
    return (guint)g_rand_int_range(source->rand, 0, (gint32)limit);
}

static GBytes *pick_bytes(const MutationSource *source, GPtrArray *of)
{
    return g_ptr_array_index(of, pick(source, of->len));
}

/* A range that is not empty, of an input that is not empty. */
static void pick_range(const MutationSource *source, const GByteArray *input, guint *ret_start,
                       guint *ret_len)
{
    *ret_start = pick(source, input->len);
    *ret_len = 1 + pick(source, input->len - *ret_start);
}

/* Numbers at which things change. */
static guint64 pick_number(const MutationSource *source)
{
    static const guint64 around[] = {
        0,       8,        16,       255,           512,       4096,      65535,
        1 << 20, 32 << 20, 1u << 31, 1u << 31 << 1, 1LL << 40, 1LL << 62, 1ULL << 63
    };
    guint64 number = around[pick(source, G_N_ELEMENTS(around))];

    return number + pick(source, 3) - 1;
}

/* --- damage; each takes an input that is not empty --- */

static void insert(GByteArray *input, guint at, const void *bytes, gsize len)
{
    guint old = input->len;

    if (len == 0 || old + len > MUTATE_MAX_BYTES) {
        return;
    }
    g_byte_array_set_size(input, old + (guint)len);
    memmove(input->data + at + len, input->data + at, old - at);
    memcpy(input->data + at, bytes, len);
}

static void flip_bit(const MutationSource *source, GByteArray *input)
{
    input->data[pick(source, input->len)] ^= (guint8)(1 << pick(source, 8));
}

static void set_byte(const MutationSource *source, GByteArray *input)
{
    input->data[pick(source, input->len)] = (guint8)pick(source, 256);
}

static void scramble(const MutationSource *source, GByteArray *input)
{
    guint start, len;

    pick_range(source, input, &start, &len);
    for (guint i = 0; i < MIN(len, SCRAMBLED_MAX); i++) {
        input->data[start + i] = (guint8)pick(source, 256);
    }
}

static void erase(const MutationSource *source, GByteArray *input)
{
    guint most = 1 + pick(source, INSERTED_MAX);
    guint start, len;

    pick_range(source, input, &start, &len);
    g_byte_array_remove_range(input, start, MIN(len, most));
}

static void cut_end(const MutationSource *source, GByteArray *input)
{
    g_byte_array_set_size(input, pick(source, input->len) + 1);
}

static void insert_noise(const MutationSource *source, GByteArray *input)
{
    guint8 noise[INSERTED_MAX];
    guint len = 1 + pick(source, INSERTED_MAX);

    for (guint i = 0; i < len; i++) {
        noise[i] = (guint8)pick(source, 256);
    }
    insert(input, pick(source, input->len + 1), noise, len);
}

/* A part of the input comes again and again: nesting, and thousands of options. */
static void repeat(const MutationSource *source, GByteArray *input)
{
    guint times = 1 + pick(source, pick(source, LONG_REPEAT) ? REPEATS_FEW : REPEATS_MANY);
    g_autoptr(GByteArray) copies = g_byte_array_new();
    guint start, len;

    pick_range(source, input, &start, &len);
    len = MIN(len, MUTATE_MAX_BYTES / times);
    for (guint i = 0; i < times; i++) {
        g_byte_array_append(copies, input->data + start, len);
    }
    insert(input, start, copies->data, copies->len);
}

static void move_part(const MutationSource *source, GByteArray *input)
{
    g_autoptr(GByteArray) part = g_byte_array_new();
    guint start, len;

    pick_range(source, input, &start, &len);
    g_byte_array_append(part, input->data + start, len);
    g_byte_array_remove_range(input, start, len);
    insert(input, pick(source, input->len + 1), part->data, part->len);
}

static void insert_word(const MutationSource *source, GByteArray *input)
{
    if (source->words->len) {
        gsize len;
        const void *word = g_bytes_get_data(pick_bytes(source, source->words), &len);

        insert(input, pick(source, input->len + 1), word, len);
    }
}

static void overwrite_with_word(const MutationSource *source, GByteArray *input)
{
    if (source->words->len) {
        guint at = pick(source, input->len);
        gsize len;
        const void *word = g_bytes_get_data(pick_bytes(source, source->words), &len);

        memcpy(input->data + at, word, MIN(len, input->len - at));
    }
}

/* Go on with the end of another seed. */
static void splice(const MutationSource *source, GByteArray *input)
{
    gsize len;
    const guint8 *other = g_bytes_get_data(pick_bytes(source, source->seeds), &len);
    guint from = len ? pick(source, (guint)len) : 0;
    guint keep = pick(source, input->len + 1);

    g_byte_array_set_size(input, keep);
    insert(input, keep, other + from, len - from);
}

/* A number in text. */
static void replace_digits(const MutationSource *source, GByteArray *input)
{
    guint start = pick(source, input->len);
    g_autofree char *digits = NULL;
    guint end;

    while (start < input->len && !g_ascii_isdigit(input->data[start])) {
        start++;
    }
    for (end = start; end < input->len && g_ascii_isdigit(input->data[end]); end++) {
    }
    if (end > start) {
        digits = g_strdup_printf("%" G_GUINT64_FORMAT, pick_number(source));
        g_byte_array_remove_range(input, start, end - start);
        insert(input, start, digits, strlen(digits));
    }
}

/* A number in binary, 1 to 8 bytes, big-endian. */
static void replace_integer(const MutationSource *source, GByteArray *input)
{
    guint64 number = GUINT64_TO_BE(pick_number(source));
    guint width = 1u << pick(source, 4);

    width = MIN(width, input->len);
    memcpy(input->data + pick(source, input->len - width + 1),
           (guint8 *)&number + sizeof(number) - width, width);
}

typedef void Damage(const MutationSource *source, GByteArray *input);

static Damage *const damages[] = {
    flip_bit,     set_byte,       scramble,        erase,       cut_end,
    insert_noise, repeat,         move_part,       insert_word, overwrite_with_word,
    splice,       replace_digits, replace_integer,
};

/* The shorter of two: small inputs are quicker, and more of their mutations matter. */
static GBytes *pick_seed(const MutationSource *source)
{
    GBytes *one = pick_bytes(source, source->seeds);
    GBytes *other = pick_bytes(source, source->seeds);

    return g_bytes_get_size(one) < g_bytes_get_size(other) ? one : other;
}

GByteArray *mutate_next(const MutationSource *source)
{
    GByteArray *input = g_byte_array_new();
    guint steps = 1 + pick(source, MAX_STEPS);
    gsize len;
    const guint8 *seed = g_bytes_get_data(pick_seed(source), &len);

    g_byte_array_append(input, seed, (guint)MIN(len, MUTATE_MAX_BYTES));
    for (guint i = 0; i < steps && input->len; i++) {
        damages[pick(source, G_N_ELEMENTS(damages))](source, input);
    }
    return input;
}
