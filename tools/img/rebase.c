/* SPDX-License-Identifier: MIT */
/*
 * merino-img rebase: gives an image another backing file. What the two show differently is copied
 * into the image first, so that it shows the same; with -u only the name in the image changes.
 */
#include "block/backing.h"
#include "block/driver.h"
#include "block/image.h"
#include "img.h"
#include "rebase-copy.h"
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
    const char *source_cache;
    bool unsafe, progress;
} RebaseArgs;

static const char *wanted_name(const RebaseArgs *args)
{
    return args->backing && args->backing[0] ? args->backing : NULL;
}

/* As QEMU has it, a name needs its format. */
static bool check_format(const RebaseArgs *args)
{
    if (args->format && !driver_find(args->format)) {
        tool_error("Invalid format name: '%s'", args->format);
        return false;
    }
    if (wanted_name(args) && !args->format) {
        tool_error("Could not change the backing file to '%s': backing format must be specified",
                   wanted_name(args));
        return false;
    }
    return true;
}

static bool change_name(BlockNode *node, const RebaseArgs *args)
{
    const char *backing = wanted_name(args);
    GError *error = NULL;

    if (node_change_backing_file(node, backing, backing ? args->format : NULL, &error) < 0) {
        tool_report(error, "Could not change the backing file to '%s'",
                    args->backing ? args->backing : "(null)");
        return false;
    }
    return true;
}

/* The new backing file, whose name is looked up from where the image lies. NULL with a message. */
static BlockBackend *open_target(BlockNode *node, const RebaseArgs *args)
{
    GError *error = NULL;
    g_autofree char *name = node_backing_name_from(node, wanted_name(args), &error);
    ImageSource source = {
        .name = name, .format = args->format, .cache = args->source_cache, .quiet = true
    };
    BlockBackend *target = name ? image_try_open(&source, &error) : NULL;

    if (!target) {
        tool_report(error, "Could not open new backing file '%s'", args->backing);
    }
    return target;
}

static bool copy(BlockBackend *image, const RebaseArgs *args)
{
    BlockBackend *target = NULL;
    int ret;

    if (wanted_name(args)) {
        target = open_target(backend_node(image), args);
        if (!target) {
            return false;
        }
    }
    if (args->progress) {
        tool_progress(0);
    }
    ret = rebase_copy(image, target, args->progress);
    if (args->progress) {
        tool_progress_end();
    }
    backend_free(target);
    return ret == 0;
}

static bool rebase(const RebaseArgs *args)
{
    BlockBackend *image = image_open(&args->source);
    bool ok;

    if (!image) {
        return false;
    }
    ok = check_format(args);
    if (ok && !backend_node(image)->driver->co_change_backing_file) {
        ok = change_name(backend_node(image), args); /* which tells that it has none */
    } else if (ok) {
        ok = (args->unsafe || copy(image, args)) && change_name(backend_node(image), args);
    }
    backend_free(image);
    return ok;
}

static bool check_args(const RebaseArgs *args)
{
    if (!args->unsafe && !args->backing) {
        img_usage_error("Must specify backing file (-b) or use unsafe mode (-u)");
    }
    if (args->source.cache && !image_cache_is_valid(args->source.cache)) {
        tool_error("Invalid cache option: %s", args->source.cache);
        return false;
    }
    if (args->source_cache && !image_cache_is_valid(args->source_cache)) {
        tool_error("Invalid source cache option: %s", args->source_cache);
        return false;
    }
    return true;
}

static void parse(int argc, char **argv, RebaseArgs *args)
{
    int option;

    while ((option = img_getopt(argc, argv, ":hf:F:b:upt:T:qU", options)) != -1) {
        switch (option) {
        case 'F':
            args->format = optarg;
            break;
        case 'b':
            args->backing = optarg;
            break;
        case 'u':
            args->unsafe = true;
            break;
        case 'p':
            args->progress = true;
            break;
        case 't':
            args->source.cache = optarg;
            break;
        case 'T':
            args->source_cache = optarg;
            break;
        default:
            img_take_source_option(option, &args->source);
            break;
        }
    }
    args->source.name = img_only_filename(argc, argv);
}

int img_rebase(int argc, char **argv)
{
    RebaseArgs args = { .source = { .writable = true } };

    parse(argc, argv, &args);
    if (!check_args(&args)) {
        return EXIT_FAILURE;
    }
    args.source.no_backing = args.unsafe;
    args.progress &= !args.source.quiet && !args.unsafe;
    return rebase(&args) ? EXIT_SUCCESS : EXIT_FAILURE;
}
