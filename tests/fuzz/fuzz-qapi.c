/* SPDX-License-Identifier: MIT */
/*
 * JSON into the schema's types: the arguments of the commands that take whole trees.
 */
#include "fuzz.h"
#include "qapi/codec.h"
#include "qapi/json.h"
#include "qapi/qapi-types.h"
#include "text.h"

static const QapiType *const types[] = {
    &qapi_type_BlockDirtyBitmapAdd, &qapi_type_BlockDirtyBitmapMerge, &qapi_type_BlockExportOptions,
    &qapi_type_BlockResizeArgs,     &qapi_type_BlockdevOptions,       &qapi_type_BlockdevReopenArgs,
    &qapi_type_NbdServerStartArgs,  &qapi_type_ObjectOptions,         &qapi_type_TransactionArgs,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    GError *error = NULL;
    json_t *json = qapi_json_parse((const char *)data, size, &error);

    fuzz_check_outcome(json != NULL, error);
    for (size_t i = 0; json && i < G_N_ELEMENTS(types); i++) {
        void *value;

        error = NULL;
        value = qapi_decode(types[i], json, QAPI_DECODE_JSON, &error);
        fuzz_check_outcome(value != NULL, error);
        if (value) {
            fuzz_check_value(types[i], value);
        }
    }
    json_decref(json);
    return 0;
}
