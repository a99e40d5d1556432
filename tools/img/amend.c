/* SPDX-License-Identifier: MIT */
/*
 * merino-img amend: changes the options of an image that is there.
 */
#include "block/driver.h"
#include "block/image.h"
#include "create-options.h"
#include "img.h"
#include "tool.h"
#include "util/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct option options[] = {
    LONG_OPTIONS_ALL,
    { "image-opts", no_argument, NULL, OPTION_IMAGE_OPTS },
    { "force", no_argument, NULL, OPTION_FORCE },
    { NULL, 0, NULL, 0 },
};

typedef struct AmendArgs {
    ImageSource source;
    const char *text;
    bool force, progress;
} AmendArgs;

static void on_progress(int64_t done, int64_t total, void *opaque)
{
    tool_progress(total > 0 ? (double)done / (double)total : 0);
}

/* An option that only images to be made have is refused with that advice. */
static bool parse(const BlockDriver *driver, const char *text, CreateValues *values, GError **error)
{
    g_autoptr(CreateValues) of_creation = NULL;

    if (create_values_parse(values, text, error)) {
        return true;
    }
    of_creation = create_values_new(create_options_of(driver->name), NULL);
    if (create_values_parse(of_creation, text, NULL)) {
        merino_error_hint(error, "This option is only supported for image creation");
    }
    return false;
}

static bool parse_version(const CreateValues *values, BlockAmendOptions *ret)
{
    const char *compat = create_values_get(values, "compat");

    if (!compat) {
        return true;
    }
    ret->has_version = true;
    if (strcmp(compat, "0.10") == 0 || strcmp(compat, "v2") == 0) {
        ret->version = BLOCKDEV_QCOW2_VERSION_V2;
    } else if (strcmp(compat, "1.1") == 0 || strcmp(compat, "v3") == 0) {
        ret->version = BLOCKDEV_QCOW2_VERSION_V3;
    } else {
        tool_error("Unknown compatibility level %s", compat);
        return false;
    }
    return true;
}

static bool collect(const CreateValues *values, const AmendArgs *args, BlockAmendOptions *ret)
{
    *ret = (BlockAmendOptions){
        .backing_file = create_values_get(values, "backing_file"),
        .backing_fmt = create_values_get(values, "backing_fmt"),
        .data_file = create_values_get(values, "data_file"),
        .has_size = create_values_get(values, "size") != NULL,
        .size = create_values_number(values, "size", 0),
        .has_lazy_refcounts = create_values_get(values, "lazy_refcounts") != NULL,
        .lazy_refcounts = create_values_number(values, "lazy_refcounts", 0),
        .has_refcount_bits = create_values_get(values, "refcount_bits") != NULL,
        .refcount_bits = create_values_number(values, "refcount_bits", 0),
        .has_data_file_raw = create_values_get(values, "data_file_raw") != NULL,
        .data_file_raw = create_values_number(values, "data_file_raw", 0),
        .force = args->force,
        .progress = args->progress ? on_progress : NULL,
    };
    return parse_version(values, ret);
}

static bool amend_node(BlockNode *node, const AmendArgs *args)
{
    const CreateOption *known = amend_options_of(node->driver->name);
    g_autoptr(CreateValues) values = create_values_new(known, NULL);
    BlockAmendOptions amend;
    GError *error = NULL;

    if (!known) {
        tool_error("Format driver '%s' does not support option amendment", node->driver->name);
        return false;
    }
    if (!parse(node->driver, args->text, values, &error)) {
        tool_report(error, NULL);
        return false;
    }
    if (!collect(values, args, &amend)) {
        return false;
    }
    if (args->progress) {
        tool_progress(0);
    }
    if (node_amend(node, &amend, &error) < 0) {
        tool_report(error, NULL);
        return false;
    }
    if (args->progress) {
        tool_progress(1);
        tool_progress_end();
    }
    return true;
}

static bool print_help(const char *format)
{
    const CreateOption *known = amend_options_of(format);
    g_autoptr(CreateValues) values = create_values_new(known, NULL);

    if (!driver_find(format)) {
        tool_error("Unknown file format '%s'", format);
        return false;
    }
    if (!known) {
        tool_error("Format driver '%s' does not support option amendment", format);
        return false;
    }
    printf("Amend options for '%s':\n", format);
    create_values_print_help(values);
    return true;
}

static bool amend(const AmendArgs *args)
{
    BlockBackend *image = image_open(&args->source);
    bool ok;

    if (!image) {
        return false;
    }
    ok = amend_node(backend_node(image), args);
    backend_free(image);
    return ok;
}

static bool run(int argc, char **argv, AmendArgs *args)
{
    if (!args->text) {
        img_usage_error("Must specify options (-o)");
    }
    if (args->source.cache && !image_cache_is_valid(args->source.cache)) {
        tool_error("Invalid cache option: %s", args->source.cache);
        return false;
    }
    if (args->source.format && create_options_ask_help(args->text)) {
        return print_help(args->source.format);
    }
    if (optind != argc - 1) {
        tool_error("Expecting one image file name");
        return false;
    }
    args->source.name = argv[optind];
    return amend(args);
}

int img_amend(int argc, char **argv)
{
    AmendArgs args = { .source = { .writable = true } };
    g_autofree char *text = NULL;
    int option;

    while ((option = img_getopt(argc, argv, ":ho:f:t:pq", options)) != -1) {
        switch (option) {
        case 'o':
            text = img_join_options(text, optarg);
            if (!text) {
                return EXIT_FAILURE;
            }
            break;
        case 't':
            args.source.cache = optarg;
            break;
        case 'p':
            args.progress = true;
            break;
        case OPTION_FORCE:
            args.force = true;
            break;
        default:
            img_take_source_option(option, &args.source);
            break;
        }
    }
    args.text = text;
    args.progress &= !args.source.quiet;
    return run(argc, argv, &args) ? EXIT_SUCCESS : EXIT_FAILURE;
}
