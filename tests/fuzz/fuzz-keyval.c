/* SPDX-License-Identifier: MIT */
/*
 * Options of the command line: key=value,... or JSON, decoded to each type that an option has.
 */
#include "fuzz.h"
#include "qapi/keyval.h"
#include "qapi/qapi-types.h"
#include "text.h"

#include <jansson.h>

static const struct {
    const QapiType *type;
    const char *implied_key;
} options[] = {
    { &qapi_type_BlockdevOptions, "driver" }, { &qapi_type_BlockExportOptions, "type" },
    { &qapi_type_NbdServerOptions, NULL },    { &qapi_type_ObjectOptions, "qom-type" },
    { &qapi_type_MonitorOptions, "chardev" },
};

/* All that key=value text can become: strings, in objects and lists. */
static void check_tree(const json_t *value)
{
    const char *name;
    json_t *member;
    size_t i;

    switch (json_typeof(value)) {
    case JSON_OBJECT:
        json_object_foreach((json_t *)value, name, member)
        {
            g_assert(*name);
            check_tree(member);
        }
        break;
    case JSON_ARRAY:
        g_assert(json_array_size(value) > 0);
        json_array_foreach(value, i, member)
        {
            check_tree(member);
        }
        break;
    default:
        g_assert(json_is_string(value));
        break;
    }
}

static void parse(const char *text, const char *implied_key)
{
    GError *error = NULL;
    bool help = false;
    json_t *tree = keyval_parse(text, implied_key, &help, &error);

    fuzz_check_outcome(tree != NULL, error);
    if (tree) {
        check_tree(tree);
        json_decref(tree);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree char *text = fuzz_text(data, size);

    parse(text, NULL);
    parse(text, "driver");
    for (size_t i = 0; i < G_N_ELEMENTS(options); i++) {
        GError *error = NULL;
        void *value = option_decode(options[i].type, text, options[i].implied_key, &error);

        fuzz_check_outcome(value != NULL, error);
        if (value) {
            fuzz_check_value(options[i].type, value);
        }
    }
    return 0;
}
