/* SPDX-License-Identifier: MIT */
/*
 * A helper of test_replies.py: each line of the input is the name of a type, a blank, and a value
 * in JSON; the value goes through the type's decoder and encoder and is printed, or the error is.
 */
#include "qapi/codec.h"
#include "qapi/json.h"
#include "qapi/qapi-types.h"

#include <stdio.h>
#include <string.h>

static const QapiType *const types[] = {
    &qapi_type_BlockDeviceInfoList, &qapi_type_BlockDirtyBitmapSha256,
    &qapi_type_BlockExportInfoList, &qapi_type_BlockInfoList,
    &qapi_type_CommandInfoList,     &qapi_type_IOThreadInfoList,
    &qapi_type_SchemaInfoList,      &qapi_type_VersionInfo,
};

static const QapiType *find_type(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(types); i++) {
        if (g_str_equal(types[i]->name, name)) {
            return types[i];
        }
    }
    g_error("no type '%s'", name);
}

static char *reprint(const QapiType *type, const char *text, GError **error)
{
    json_auto_t *in = qapi_json_parse(text, strlen(text), error);
    void *value = in ? qapi_decode(type, in, QAPI_DECODE_JSON, error) : NULL;
    json_auto_t *out = NULL;

    if (!value) {
        return NULL;
    }
    out = qapi_encode(type, value);
    qapi_value_free(type, value);
    return qapi_json_text(out, false);
}

int main(void)
{
    char *line = NULL;
    size_t room = 0;
    ssize_t len;

    while ((len = getline(&line, &room, stdin)) > 0) {
        char *blank = strchr(line, ' ');
        g_autoptr(GError) error = NULL;
        g_autofree char *text = NULL;

        line[len - 1] = '\0';
        *blank = '\0';
        text = reprint(find_type(line), blank + 1, &error);
        puts(text ? text : error->message);
    }
    free(line);
    return 0;
}
