/* SPDX-License-Identifier: MIT */
/*
 * What the decoder refuses, and with which words: the table tests/qapi/refusals.json, whose
 * sentences tests/qapi/test_refusals.py holds against QEMU itself.
 */
#include "qapi/dispatch.h"
#include "qapi/json.h"
#include "qapi/keyval.h"
#include "qapi/qapi-types.h"

#include <string.h>

static const struct {
    const char *name;
    const QapiType *arguments; /* NULL: the command has none */
} commands[] = {
    { "block-dirty-bitmap-add", &qapi_type_BlockDirtyBitmapAdd },
    { "block-dirty-bitmap-merge", &qapi_type_BlockDirtyBitmapMerge },
    { "block-export-add", &qapi_type_BlockExportOptions },
    { "block_resize", &qapi_type_BlockResizeArgs },
    { "blockdev-add", &qapi_type_BlockdevOptions },
    { "blockdev-reopen", &qapi_type_BlockdevReopenArgs },
    { "nbd-server-add", &qapi_type_NbdServerAddOptions },
    { "nbd-server-remove", &qapi_type_NbdServerRemoveArgs },
    { "nbd-server-start", &qapi_type_NbdServerStartArgs },
    { "object-add", &qapi_type_ObjectOptions },
    { "qmp_capabilities", &qapi_type_QmpCapabilitiesArgs },
    { "query-block", NULL },
    { "query-named-block-nodes", &qapi_type_QueryNamedBlockNodesArgs },
    { "transaction", &qapi_type_TransactionArgs },
};

static const struct {
    const char *name;
    const QapiType *type;
    const char *implied_key;
} options[] = {
    { "--blockdev", &qapi_type_BlockdevOptions, "driver" },
    { "--export", &qapi_type_BlockExportOptions, "type" },
    { "--nbd-server", &qapi_type_NbdServerOptions, NULL },
};

static void refuse_command(const char *name, const json_t *arguments, GError **error)
{
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        if (!g_str_equal(commands[i].name, name)) {
            continue;
        }
        if (commands[i].arguments) {
            g_assert_null(qapi_decode(commands[i].arguments, arguments, QAPI_DECODE_JSON, error));
        } else {
            g_assert_false(qapi_no_arguments(arguments, error));
        }
        return;
    }
    g_error("the test knows no command '%s'", name);
}

static void refuse_option(const char *name, const char *text, GError **error)
{
    for (size_t i = 0; i < G_N_ELEMENTS(options); i++) {
        if (g_str_equal(options[i].name, name)) {
            g_assert_null(option_decode(options[i].type, text, options[i].implied_key, error));
            return;
        }
    }
    g_error("the test knows no option '%s'", name);
}

static void test_row(const void *opaque)
{
    const json_t *row = opaque;
    const char *command = json_string_value(json_object_get(row, "execute"));
    const char *desc = json_string_value(json_object_get(row, "desc"));
    g_autoptr(GError) error = NULL;

    if (command) {
        refuse_command(command, json_object_get(row, "arguments"), &error);
    } else {
        refuse_option(json_string_value(json_object_get(row, "option")),
                      json_string_value(json_object_get(row, "text")), &error);
    }
    g_assert_cmpstr(error->message, ==, desc);
}

int main(int argc, char **argv)
{
    g_autofree char *text = NULL;
    g_autoptr(GError) error = NULL;
    size_t len;
    const json_t *rows;
    json_t *table;
    int status;

    g_test_init(&argc, &argv, NULL);
    g_file_get_contents(REFUSALS, &text, &len, &error);
    g_assert_no_error(error);
    table = qapi_json_parse(text, len, &error);
    g_assert_no_error(error);
    rows = json_object_get(table, "rows");
    for (size_t i = 0; i < json_array_size(rows); i++) {
        g_autofree char *path = g_strdup_printf("/qapi/refusals/%zu", i + 1);

        g_test_add_data_func(path, json_array_get(rows, i), test_row);
    }
    status = g_test_run();
    json_decref(table);
    return status;
}
