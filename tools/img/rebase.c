/* SPDX-License-Identifier: MIT */
/*
 * merino-img rebase: gives an image another backing file. With -u only the name in the image
 * changes.
 */
#include "block/driver.h"
#include "block/image.h"
#include "img.h"
#include "tool.h"
#include "util/error.h"

#include <errno.h>
#include <stdlib.h>

static const struct option options[] = {
    LONG_OPTIONS_ALL,
    { "image-opts", no_argument, NULL, OPTION_IMAGE_OPTS },
    { "force-share", no_argument, NULL, 'U' },
    { NULL, 0, NULL, 0 },
};

typedef struct RebaseArgs {
    ImageSource source;
    const char *backing; /* NULL: none was named; "": it shall have none */
    const char *format;
    bool unsafe;
} RebaseArgs;

/* As QEMU has it, a name needs its format; a name that is empty as well. */
static bool change_name(BlockNode *node, const RebaseArgs *args)
{
    GError *error = NULL;
    const char *backing = args->backing && args->backing[0] ? args->backing : NULL;

    if (backing && !args->format) {
        tool_error("Could not change the backing file to '%s': backing format must be specified",
                   backing);
        return false;
    }
    if (node_change_backing_file(node, backing, backing ? args->format : NULL, &error) < 0) {
        tool_report(error, "Could not change the backing file to '%s'",
                    args->backing ? args->backing : "(null)");
        return false;
    }
    return true;
}

static bool rebase(const RebaseArgs *args)
{
    BlockBackend *image = image_open(&args->source);
    bool ok;

    if (!image) {
        return false;
    }
    if (args->format && !driver_find(args->format)) {
        tool_error("Invalid format name: '%s'", args->format);
        ok = false;
    } else {
        ok = change_name(backend_node(image), args);
    }
    backend_free(image);
    return ok;
}

static void check_args(const RebaseArgs *args)
{
    if (!args->unsafe && !args->backing) {
        img_usage_error("Must specify backing file (-b) or use unsafe mode (-u)");
    }
    if (!args->unsafe) {
        img_usage_error("Only the unsafe mode (-u) is supported");
    }
}

int img_rebase(int argc, char **argv)
{
    RebaseArgs args = { .source = { .writable = true, .no_backing = true } };
    int option;

    while ((option = img_getopt(argc, argv, ":hf:F:b:upt:T:qU", options)) != -1) {
        switch (option) {
        case 'f':
            args.source.format = optarg;
            break;
        case 'F':
            args.format = optarg;
            break;
        case 'b':
            args.backing = optarg;
            break;
        case 'u':
            args.unsafe = true;
            break;
        case 't':
            args.source.cache = optarg;
            break;
        case 'U':
            args.source.force_share = true;
            break;
        case OPTION_IMAGE_OPTS:
            args.source.image_opts = true;
            break;
        }
    }
    args.source.name = img_only_filename(argc, argv);
    check_args(&args);
    if (args.source.cache && !image_cache_is_valid(args.source.cache)) {
        tool_error("Invalid cache option: %s", args.source.cache);
        return EXIT_FAILURE;
    }
    return rebase(&args) ? EXIT_SUCCESS : EXIT_FAILURE;
}
