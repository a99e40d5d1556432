/* SPDX-License-Identifier: MIT */
/*
 * merino-img bitmap: dirty bitmaps that are stored in an image.
 */
#include "block/driver.h"
#include "img.h"
#include "qapi/qapi-commands.h"
#include "tool.h"

#include <stdlib.h>

static const struct option options[] = {
    LONG_OPTIONS_ALL,
    { "image-opts", no_argument, NULL, OPTION_IMAGE_OPTS },
    { "add", no_argument, NULL, OPTION_ADD },
    { "remove", no_argument, NULL, OPTION_REMOVE },
    { "clear", no_argument, NULL, OPTION_CLEAR },
    { "enable", no_argument, NULL, OPTION_ENABLE },
    { "disable", no_argument, NULL, OPTION_DISABLE },
    { "merge", required_argument, NULL, OPTION_MERGE },
    { "granularity", required_argument, NULL, 'g' },
    { "source-file", required_argument, NULL, 'b' },
    { "source-format", required_argument, NULL, 'F' },
    { NULL, 0, NULL, 0 },
};

typedef struct Step {
    int action; /* an OPTION_* */
    const char *source;
} Step;

typedef struct BitmapArgs {
    ImageSource image, source; /* `source` without name: that of the image */
    const char *bitmap;
    int64_t granularity; /* 0: by default */
    GArray *steps;
    bool adds, merges;
} BitmapArgs;

static const char *action_name(int action)
{
    switch (action) {
    case OPTION_ADD:
        return "add";
    case OPTION_REMOVE:
        return "remove";
    case OPTION_CLEAR:
        return "clear";
    case OPTION_ENABLE:
        return "enable";
    case OPTION_DISABLE:
        return "disable";
    default:
        return "merge";
    }
}

static bool add_bitmap(const char *node, const BitmapArgs *args, GError **error)
{
    BlockDirtyBitmapAdd add = {
        .node = (char *)node,
        .name = (char *)args->bitmap,
        .has_granularity = args->granularity != 0,
        .granularity = (uint32_t)args->granularity,
        .has_persistent = true,
        .persistent = true,
    };

    return qmp_block_dirty_bitmap_add(&add, error);
}

static bool merge_bitmap(const char *node, const char *source_node, const char *source,
                         const BitmapArgs *args, GError **error)
{
    BlockDirtyBitmap far = { .node = (char *)source_node, .name = (char *)source };
    BlockDirtyBitmapOrStr item = { .type = BLOCK_DIRTY_BITMAP_OR_STR_TYPE_EXTERNAL,
                                   .u.external = &far };
    BlockDirtyBitmapOrStr *items[] = { &item };
    BlockDirtyBitmapOrStrList list = { .len = 1, .items = items };
    BlockDirtyBitmapMerge merge = { .node = (char *)node,
                                    .target = (char *)args->bitmap,
                                    .bitmaps = &list };

    return qmp_block_dirty_bitmap_merge(&merge, error);
}

static bool do_step(const Step *step, const char *node, const char *source_node,
                    const BitmapArgs *args, GError **error)
{
    BlockDirtyBitmap own = { .node = (char *)node, .name = (char *)args->bitmap };

    switch (step->action) {
    case OPTION_ADD:
        return add_bitmap(node, args, error);
    case OPTION_REMOVE:
        return qmp_block_dirty_bitmap_remove(&own, error);
    case OPTION_CLEAR:
        return qmp_block_dirty_bitmap_clear(&own, error);
    case OPTION_ENABLE:
        return qmp_block_dirty_bitmap_enable(&own, error);
    case OPTION_DISABLE:
        return qmp_block_dirty_bitmap_disable(&own, error);
    default:
        return merge_bitmap(node, source_node, step->source, args, error);
    }
}

static bool do_steps(const BitmapArgs *args, const char *node, const char *source_node)
{
    for (guint i = 0; i < args->steps->len; i++) {
        const Step *step = &g_array_index(args->steps, Step, i);
        GError *error = NULL;

        if (!do_step(step, node, source_node, args, &error)) {
            tool_report(error, "Operation %s on bitmap %s failed", action_name(step->action),
                        args->bitmap);
            return false;
        }
    }
    return true;
}

static bool change_bitmaps(const BitmapArgs *args)
{
    BlockBackend *image = image_open(&args->image);
    BlockBackend *source = NULL;
    bool ok = image != NULL;

    if (ok && args->source.name) {
        source = image_open(&args->source);
        ok = source != NULL;
    }
    if (ok) {
        ok = do_steps(args, backend_node(image)->node_name,
                      backend_node(source ? source : image)->node_name);
    }
    backend_free(source);
    backend_free(image);
    return ok;
}

static bool check_args(int argc, char **argv, BitmapArgs *args)
{
    const char *wrong = NULL;

    if (args->steps->len == 0) {
        wrong = "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge";
    } else if (optind != argc - 2) {
        wrong = "Expecting filename and bitmap name";
    } else if (args->granularity && !args->adds) {
        wrong = "granularity only supported with --add";
    } else if (args->source.format && !args->source.name) {
        wrong = "-F only supported with -b";
    } else if (args->source.name && !args->merges) {
        wrong = "Merge bitmap source file only supported with --merge";
    } else {
        args->image.name = argv[optind];
        args->bitmap = argv[optind + 1];
        return true;
    }
    tool_error("%s", wrong);
    return false;
}

static void add_step(BitmapArgs *args, int action, const char *source)
{
    Step step = { action, source };

    g_array_append_val(args->steps, step);
    args->adds |= action == OPTION_ADD;
    args->merges |= action == OPTION_MERGE;
}

static bool parse(int argc, char **argv, BitmapArgs *args)
{
    int option;

    while ((option = img_getopt(argc, argv, ":b:f:F:g:h", options)) != -1) {
        switch (option) {
        case 'b':
            args->source.name = optarg;
            break;
        case 'F':
            args->source.format = optarg;
            break;
        case 'g':
            args->granularity = tool_parse_size("granularity", optarg);
            if (args->granularity < 0) {
                return false;
            }
            if (args->granularity > UINT32_MAX) {
                tool_error("Granularity must be at most 2 GiB");
                return false;
            }
            break;
        default:
            if (!img_take_source_option(option, &args->image)) {
                add_step(args, option, optarg);
            }
            break;
        }
    }
    return check_args(argc, argv, args);
}

int img_bitmap(int argc, char **argv)
{
    BitmapArgs args = { .image.writable = true };
    bool ok;

    args.steps = g_array_new(false, false, sizeof(Step));
    ok = parse(argc, argv, &args) && change_bitmaps(&args);
    g_array_unref(args.steps);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
