/* SPDX-License-Identifier: MIT */
/*
 * merino-img create
 */
#include "create-image.h"
#include "create-options.h"
#include "img.h"
#include "tool.h"

#include <stdlib.h>

static const struct option options[] = {
    LONG_OPTIONS_ALL,
    { NULL, 0, NULL, 0 },
};

/* What is left on the line: the file's name, and perhaps a size. */
static bool parse_operands(int argc, char **argv, ImageCreation *creation)
{
    if (optind >= argc) {
        img_usage_error("Expecting image file name");
    }
    creation->filename = argv[optind++];
    creation->size = -1;
    if (optind < argc) {
        creation->size = tool_parse_size("image size", argv[optind++]);
        if (creation->size < 0) {
            return false;
        }
    }
    if (optind < argc) {
        img_usage_error("Unexpected argument: %s", argv[optind]);
    }
    return true;
}

int img_create(int argc, char **argv)
{
    ImageCreation creation = { .format = "raw" };
    g_autofree char *text = NULL;
    int option;

    while ((option = img_getopt(argc, argv, ":F:b:f:ho:qu", options)) != -1) {
        switch (option) {
        case 'F':
            creation.backing_fmt = optarg;
            break;
        case 'b':
            creation.backing_file = optarg;
            break;
        case 'f':
            creation.format = optarg;
            break;
        case 'o':
            text = img_join_options(text, optarg);
            if (!text) {
                return EXIT_FAILURE;
            }
            break;
        case 'q':
            creation.quiet = true;
            break;
        case 'u':
            creation.blind = true;
            break;
        }
    }
    if (text && create_options_ask_help(text)) {
        return image_create_help(creation.format, argv[optind]) ? EXIT_SUCCESS : EXIT_FAILURE;
    }
    if (!parse_operands(argc, argv, &creation)) {
        return EXIT_FAILURE;
    }
    creation.options = text;
    return image_create(&creation) ? EXIT_SUCCESS : EXIT_FAILURE;
}
