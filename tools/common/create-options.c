/* SPDX-License-Identifier: MIT */
#include "create-options.h"

#include "util/error.h"
#include "util/size.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const CreateOption raw_options[] = {
    { "size", CREATE_OPTION_SIZE, "Virtual disk size", NULL },
    { 0 },
};

static const CreateOption file_options[] = {
    { "size", CREATE_OPTION_SIZE, "Virtual disk size", NULL },
    { "nocow", CREATE_OPTION_BOOL, "Turn off copy-on-write (valid only on btrfs)", NULL },
    { "preallocation", CREATE_OPTION_STR, "Preallocation mode (allowed values: off, falloc, full)",
      NULL },
    { "extent_size_hint", CREATE_OPTION_SIZE, "Extent size hint for the image file, 0 to disable",
      NULL },
    { 0 },
};

static const CreateOption qcow2_options[] = {
    { "encryption", CREATE_OPTION_BOOL, NULL, NULL },
    { "encrypt.format", CREATE_OPTION_STR, NULL, NULL },
    { "encrypt.key-secret", CREATE_OPTION_STR, NULL, NULL },
    { "encrypt.cipher-alg", CREATE_OPTION_STR, NULL, NULL },
    { "encrypt.cipher-mode", CREATE_OPTION_STR, NULL, NULL },
    { "encrypt.ivgen-alg", CREATE_OPTION_STR, NULL, NULL },
    { "encrypt.ivgen-hash-alg", CREATE_OPTION_STR, NULL, NULL },
    { "encrypt.hash-alg", CREATE_OPTION_STR, NULL, NULL },
    { "encrypt.iter-time", CREATE_OPTION_NUM, NULL, NULL },
    { "cluster_size", CREATE_OPTION_SIZE, "qcow2 cluster size", "65536" },
    { "extended_l2", CREATE_OPTION_BOOL, "Extended L2 tables", "off" },
    { "preallocation", CREATE_OPTION_STR,
      "Preallocation mode (allowed values: off, metadata, falloc, full)", NULL },
    { "compression_type", CREATE_OPTION_STR,
      "Compression method used for image cluster compression", "zlib" },
    { "size", CREATE_OPTION_SIZE, "Virtual disk size", NULL },
    { "compat", CREATE_OPTION_STR, "Compatibility level (v2 [0.10] or v3 [1.1])", NULL },
    { "backing_file", CREATE_OPTION_STR, "File name of a base image", NULL },
    { "backing_fmt", CREATE_OPTION_STR, "Image format of the base image", NULL },
    { "data_file", CREATE_OPTION_STR, "File name of an external data file", NULL },
    { "data_file_raw", CREATE_OPTION_BOOL, "The external data file must stay valid as a raw image",
      NULL },
    { "lazy_refcounts", CREATE_OPTION_BOOL, "Postpone refcount updates", "off" },
    { "refcount_bits", CREATE_OPTION_NUM, "Width of a reference count entry in bits", "16" },
    { 0 },
};

static const CreateOption qcow2_amend_options[] = {
    { "size", CREATE_OPTION_SIZE, "Virtual disk size", NULL },
    { "compat", CREATE_OPTION_STR, "Compatibility level (v2 [0.10] or v3 [1.1])", NULL },
    { "backing_file", CREATE_OPTION_STR, "File name of a base image", NULL },
    { "backing_fmt", CREATE_OPTION_STR, "Image format of the base image", NULL },
    { "data_file", CREATE_OPTION_STR, "File name of an external data file", NULL },
    { "data_file_raw", CREATE_OPTION_BOOL, "The external data file must stay valid as a raw image",
      NULL },
    { "lazy_refcounts", CREATE_OPTION_BOOL, "Postpone refcount updates", NULL },
    { "refcount_bits", CREATE_OPTION_NUM, "Width of a reference count entry in bits", NULL },
    { 0 },
};

static const struct {
    const char *driver;
    const CreateOption *create, *amend;
} drivers[] = {
    { "file", file_options, NULL },
    { "qcow2", qcow2_options, qcow2_amend_options },
    { "raw", raw_options, NULL },
};

const CreateOption *create_options_of(const char *driver)
{
    for (size_t i = 0; i < G_N_ELEMENTS(drivers); i++) {
        if (strcmp(drivers[i].driver, driver) == 0) {
            return drivers[i].create;
        }
    }
    return NULL;
}

const CreateOption *amend_options_of(const char *driver)
{
    for (size_t i = 0; i < G_N_ELEMENTS(drivers); i++) {
        if (strcmp(drivers[i].driver, driver) == 0) {
            return drivers[i].amend;
        }
    }
    return NULL;
}

/* --- values --- */

typedef struct CreateValue {
    const CreateOption *option;
    char *text;  /* as it is printed; NULL: not given */
    char *value; /* the same as it is read: switches are "on" or "off" */
} CreateValue;

struct CreateValues {
    GArray *values;
};

static CreateValue *find(const CreateValues *values, const char *name)
{
    for (guint i = 0; i < values->values->len; i++) {
        CreateValue *value = &g_array_index(values->values, CreateValue, i);

        if (strcmp(value->option->name, name) == 0) {
            return value;
        }
    }
    return NULL;
}

static void add_options(CreateValues *values, const CreateOption *options)
{
    for (; options && options->name; options++) {
        CreateValue value = { .option = options };

        if (!find(values, options->name)) {
            g_array_append_val(values->values, value);
        }
    }
}

static void clear_value(void *opaque)
{
    CreateValue *value = opaque;

    g_free(value->text);
    g_free(value->value);
}

CreateValues *create_values_new(const CreateOption *first, const CreateOption *second)
{
    CreateValues *values = g_new0(CreateValues, 1);

    values->values = g_array_new(false, false, sizeof(CreateValue));
    g_array_set_clear_func(values->values, clear_value);
    add_options(values, first);
    add_options(values, second);
    return values;
}

void create_values_free(CreateValues *values)
{
    if (values) {
        g_array_unref(values->values);
        g_free(values);
    }
}

/* --- parsing --- */

static bool parse_size(const char *name, const char *text, uint64_t *ret, GError **error)
{
    int parsed = size_parse(text, ret);

    if (parsed == 0) {
        return true;
    }
    if (parsed == -ERANGE) {
        merino_error(error, "Value '%s' is out of range for parameter '%s'", text, name);
        return false;
    }
    merino_error(error, "Parameter '%s' expects a non-negative number below 2^64", name);
    merino_error_hint(error, "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, "
                             "peta-\nand exabytes, respectively.");
    return false;
}

static bool parse_number(const char *name, const char *text, uint64_t *ret, GError **error)
{
    char *end;

    errno = 0;
    *ret = strtoull(text, &end, 0);
    if (errno == ERANGE) {
        merino_error(error, "Value '%s' is too large for parameter '%s'", text, name);
        return false;
    }
    if (errno || end == text || *end) {
        merino_error(error, "Parameter '%s' expects a number", name);
        return false;
    }
    return true;
}

/* As switches are written. */
static const char *parse_bool(const char *text)
{
    static const char *const on[] = { "on", "yes", "true", "y", NULL };
    static const char *const off[] = { "off", "no", "false", "n", NULL };

    if (g_strv_contains((const gchar *const *)on, text)) {
        return "on";
    }
    return g_strv_contains((const gchar *const *)off, text) ? "off" : NULL;
}

/* The text in the form in which it is read; NULL: it is not of the kind. */
static char *normal_form(const CreateOption *option, const char *text, GError **error)
{
    uint64_t number;

    switch (option->kind) {
    case CREATE_OPTION_STR:
        return g_strdup(text);
    case CREATE_OPTION_BOOL:
        if (parse_bool(text)) {
            return g_strdup(parse_bool(text));
        }
        merino_error(error, "Parameter '%s' expects 'on' or 'off'", option->name);
        return NULL;
    case CREATE_OPTION_SIZE:
        return parse_size(option->name, text, &number, error)
                   ? g_strdup_printf("%" G_GUINT64_FORMAT, number)
                   : NULL;
    case CREATE_OPTION_NUM:
        return parse_number(option->name, text, &number, error)
                   ? g_strdup_printf("%" G_GUINT64_FORMAT, number)
                   : NULL;
    }
    g_assert_not_reached();
}

bool create_values_set(CreateValues *values, const char *name, const char *text, GError **error)
{
    CreateValue *value = find(values, name);
    char *normal;

    if (!value) {
        merino_error(error, "Invalid parameter '%s'", name);
        return false;
    }
    normal = normal_form(value->option, text, error);
    if (!normal) {
        return false;
    }
    clear_value(value);
    value->value = normal;
    value->text = g_strdup(value->option->kind == CREATE_OPTION_BOOL ? text : normal);
    return true;
}

/* Up to the next single comma; `*text` is moved behind it. */
static char *next_item(const char **text)
{
    GString *item = g_string_new(NULL);
    const char *at = *text;

    for (; *at; at++) {
        if (at[0] == ',' && at[1] == ',') {
            at++;
        } else if (at[0] == ',') {
            at++;
            break;
        }
        g_string_append_c(item, *at);
    }
    *text = at;
    return g_string_free(item, false);
}

bool create_values_parse(CreateValues *values, const char *text, GError **error)
{
    while (*text) {
        g_autofree char *item = next_item(&text);
        char *equals = strchr(item, '=');
        const char *name = item, *value = "on";

        if (equals) {
            *equals = '\0';
            value = equals + 1;
        } else if (g_str_has_prefix(item, "no")) {
            name = item + 2;
            value = "off";
        }
        if (!create_values_set(values, name, value, error)) {
            return false;
        }
    }
    return true;
}

bool create_options_ask_help(const char *text)
{
    while (*text) {
        g_autofree char *item = next_item(&text);

        if (strcmp(item, "help") == 0 || strcmp(item, "?") == 0) {
            return true;
        }
    }
    return false;
}

/* --- reading --- */

bool create_values_has_option(const CreateValues *values, const char *name)
{
    return find(values, name) != NULL;
}

const char *create_values_get(const CreateValues *values, const char *name)
{
    const CreateValue *value = find(values, name);

    if (!value) {
        return NULL;
    }
    return value->value ? value->value : value->option->value;
}

int64_t create_values_number(const CreateValues *values, const char *name, int64_t otherwise)
{
    const char *text = create_values_get(values, name);

    if (!text) {
        return otherwise;
    }
    if (find(values, name)->option->kind == CREATE_OPTION_BOOL) {
        return strcmp(text, "on") == 0;
    }
    return (int64_t)g_ascii_strtoull(text, NULL, 10);
}

const char *create_values_unsupported(const CreateValues *values)
{
    for (guint i = 0; i < values->values->len; i++) {
        const CreateValue *value = &g_array_index(values->values, CreateValue, i);

        if (!value->option->help && value->value && strcmp(value->value, "off") != 0) {
            return value->option->name;
        }
    }
    return NULL;
}

void create_values_print(const CreateValues *values)
{
    for (guint i = 0; i < values->values->len; i++) {
        const CreateValue *value = &g_array_index(values->values, CreateValue, i);
        const char *text = value->text ? value->text : value->option->value;

        if (!text) {
            continue;
        }
        printf(" %s=", value->option->name);
        for (; *text; text++) {
            fputs(*text == ',' ? "," : "", stdout);
            fputc(*text, stdout);
        }
    }
}

static int compare_names(const void *a, const void *b)
{
    const CreateValue *left = a;
    const CreateValue *right = b;

    return strcmp(left->option->name, right->option->name);
}

void create_values_print_help(const CreateValues *values)
{
    static const char *const kinds[] = {
        [CREATE_OPTION_STR] = "str",
        [CREATE_OPTION_BOOL] = "bool (on/off)",
        [CREATE_OPTION_SIZE] = "size",
        [CREATE_OPTION_NUM] = "num",
    };

    g_array_sort(values->values, compare_names);
    for (guint i = 0; i < values->values->len; i++) {
        const CreateOption *option = g_array_index(values->values, CreateValue, i).option;
        g_autofree char *head = g_strdup_printf("%s=<%s>", option->name, kinds[option->kind]);

        if (!option->help) {
            continue;
        }
        printf("  %-22s - %s\n", head, option->help);
    }
}
