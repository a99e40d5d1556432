/* SPDX-License-Identifier: MIT */
/*
 * Names of images, as they stand on command lines and in the headers of images that name a backing
 * file: to the options of nodes. Nothing is opened, since the format is given.
 */
#include "block/backing.h"
#include "block/builtins.h"
#include "fuzz.h"
#include "qapi/qapi-types.h"
#include "text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool ready;
    g_autofree char *name = fuzz_text(data, size);
    GError *error = NULL;
    BlockdevOptions *options;

    if (!ready) {
        block_builtins_register();
        ready = true;
    }
    options = image_options(name, "raw", NULL, &error);
    g_assert((options != NULL) == (error == NULL));
    g_clear_error(&error);
    if (options) {
        fuzz_check_value(&qapi_type_BlockdevOptions, options);
    }
    return 0;
}
