/* SPDX-License-Identifier: MIT */
/*
 * merino-img resize
 */
#include "img.h"
#include "tool.h"
#include "util/error.h"
#include "util/size.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct option options[] = {
    LONG_OPTIONS_ALL,
    { "image-opts", no_argument, NULL, OPTION_IMAGE_OPTS },
    { "preallocation", required_argument, NULL, OPTION_PREALLOCATION },
    { "shrink", no_argument, NULL, OPTION_SHRINK },
    { NULL, 0, NULL, 0 },
};

typedef struct Change {
    uint64_t size; /* or the difference */
    int sign;      /* of the difference; 0: there is none */
    bool shrink;
    PreallocMode preallocation;
} Change;

static bool parse_change(const char *text, Change *ret)
{
    if (*text == '+' || *text == '-') {
        ret->sign = *text == '+' ? 1 : -1;
        text++;
    }
    if (size_parse(text, &ret->size) < 0) {
        tool_error("Parameter 'size' expects a non-negative number below 2^64\n"
                   "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                   "and exabytes, respectively.");
        return false;
    }
    return true;
}

/* -1: more than any disk has, or less. */
static int64_t new_size(const Change *change, int64_t now)
{
    int64_t size;
    bool overflow = change->sign < 0
                        ? __builtin_sub_overflow(now, change->size, &size)
                        : __builtin_add_overflow(change->sign ? now : 0, change->size, &size);

    return overflow ? -1 : size;
}

static bool check_size(const Change *change, int64_t now, int64_t size)
{
    if (size <= 0) {
        tool_error("New image size must be positive");
        return false;
    }
    if (size <= now && change->preallocation != PREALLOC_MODE_OFF) {
        tool_error("Preallocation can only be used for growing images");
        return false;
    }
    if (size < now && !change->shrink) {
        tool_error("Use the --shrink option to perform a shrink operation.");
        tool_warn("Shrinking an image will delete all data beyond the shrunken image's end. "
                  "Before performing such an operation, make sure there is no important data "
                  "there.");
        return false;
    }
    return true;
}

static bool resize_image(const ImageSource *source, const Change *change)
{
    BlockBackend *image = image_open(source);
    GError *error = NULL;
    int64_t now, size;
    bool ok;

    if (!image) {
        return false;
    }
    now = backend_size(image);
    size = new_size(change, now);
    ok = check_size(change, now, size);
    if (ok && !node_resize_preallocated(backend_node(image), size, change->preallocation, &error)) {
        tool_report(error, NULL);
        ok = false;
    }
    if (ok && !source->quiet) {
        printf("Image resized.\n");
    }
    backend_free(image);
    return ok;
}

static bool parse_preallocation(const char *text, Change *ret)
{
    int mode = qapi_enum_parse(&qapi_type_PreallocMode, text);

    if (mode < 0) {
        tool_error("Invalid preallocation mode '%s'", text);
        return false;
    }
    ret->preallocation = mode;
    return true;
}

int img_resize(int argc, char **argv)
{
    ImageSource source = { .writable = true };
    Change change = { 0 };
    int option;
    const char *size;

    /* The size is the last argument, whatever it begins with: it must not pass for an option. */
    if (argc < 3) {
        img_usage_error("Not enough arguments");
    }
    size = argv[--argc];
    argv[argc] = NULL;
    while ((option = img_getopt(argc, argv, ":f:hq", options)) != -1) {
        switch (option) {
        case OPTION_PREALLOCATION:
            if (!parse_preallocation(optarg, &change)) {
                return EXIT_FAILURE;
            }
            break;
        case OPTION_SHRINK:
            change.shrink = true;
            break;
        default:
            img_take_source_option(option, &source);
            break;
        }
    }
    if (optind != argc - 1) {
        img_usage_error("Expecting image file name and size");
    }
    source.name = argv[optind];
    return parse_change(size, &change) && resize_image(&source, &change) ? EXIT_SUCCESS
                                                                         : EXIT_FAILURE;
}
