/* SPDX-License-Identifier: MIT */
/*
 * merino-img map: which ranges of a disk are where.
 */
#include "block/driver.h"
#include "img.h"
#include "tool.h"
#include "util/coroutine.h"
#include "util/error.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STEP_MAX (INT64_C(1) << 30)

static const struct option options[] = {
    LONG_OPTIONS_ALL,
    { "format", required_argument, NULL, 'f' },
    { "output", required_argument, NULL, OPTION_OUTPUT },
    { "image-opts", no_argument, NULL, OPTION_IMAGE_OPTS },
    { "force-share", no_argument, NULL, 'U' },
    { "start-offset", required_argument, NULL, 's' },
    { "max-length", required_argument, NULL, 'l' },
    { NULL, 0, NULL, 0 },
};

typedef struct Extent {
    int64_t start, length;
    bool data, zero, present, has_offset;
    int64_t offset;
    int depth;
    char *filename; /* of what `offset` is in; or NULL */
} Extent;

typedef struct Query {
    BlockBackend *image;
    int64_t offset, bytes;
    Extent extent;
    int ret;
} Query;

/* The layer that decides, counted from the top; below all of them nothing is present. */
static int coroutine_fn look(BlockNode *node, Query *query, BlockStatus *status)
{
    query->extent.depth = 0;
    for (;;) {
        int ret = node_co_block_status(node, query->offset, query->bytes, status);

        if (ret < 0) {
            return ret;
        }
        query->bytes = status->bytes;
        if (status->flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO)) {
            return 0;
        }
        node = node_skip_filters(node);
        if (!node->backing) {
            status->flags = 0;
            return 0;
        }
        if (query->offset >= node_size(node->backing->node)) {
            status->flags |= BLOCK_STATUS_ZERO; /* the layer beneath is shorter */
            return 0;
        }
        node = node_skip_filters(node->backing->node);
        query->extent.depth++;
    }
}

static void coroutine_fn query_entry(void *opaque)
{
    Query *query = opaque;
    Extent *extent = &query->extent;
    BlockStatus status = { 0 };

    backend_co_enter(query->image);
    query->ret = look(backend_node(query->image), query, &status);
    backend_leave(query->image);
    extent->start = query->offset;
    extent->length = query->bytes;
    extent->data = status.flags & BLOCK_STATUS_DATA;
    extent->zero = status.flags & BLOCK_STATUS_ZERO;
    extent->present = status.flags & (BLOCK_STATUS_ALLOCATED);
    extent->has_offset = status.flags & BLOCK_STATUS_OFFSET_VALID;
    extent->offset = extent->has_offset ? status.map : 0;
    extent->filename = extent->has_offset ? g_strdup(status.file->filename) : NULL;
}

static bool continues(const Extent *extent, const Extent *next)
{
    return extent->length > 0 && extent->data == next->data && extent->zero == next->zero &&
           extent->present == next->present && extent->has_offset == next->has_offset &&
           extent->depth == next->depth && g_strcmp0(extent->filename, next->filename) == 0 &&
           (!extent->has_offset || extent->offset + extent->length == next->offset);
}

/* --- printing --- */

static bool print_human(const Extent *extent, bool last)
{
    if (extent->data && !extent->zero && !extent->has_offset) {
        tool_error("File contains external, encrypted or compressed clusters.");
        return false;
    }
    if (extent->data && !extent->zero) {
        printf("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64 "%s\n", extent->start, extent->length,
               extent->offset, extent->filename);
    }
    return true;
}

static const char *word(bool value)
{
    return value ? "true" : "false";
}

static bool print_json(const Extent *extent, bool last)
{
    printf("{ \"start\": %" PRId64 ", \"length\": %" PRId64 ", \"depth\": %d, \"present\": %s, "
           "\"zero\": %s, \"data\": %s",
           extent->start, extent->length, extent->depth, word(extent->present), word(extent->zero),
           word(extent->data));
    if (extent->has_offset) {
        printf(", \"offset\": %" PRId64, extent->offset);
    }
    printf(last ? "}]\n" : "},\n");
    return true;
}

typedef bool PrintFn(const Extent *extent, bool last);

static bool map_range(BlockBackend *image, int64_t offset, int64_t end, PrintFn *print)
{
    Extent current = { .start = offset };
    bool ok = true;

    while (ok && offset < end) {
        Query query = { .image = image, .offset = offset, .bytes = MIN(end - offset, STEP_MAX) };

        coroutine_run(query_entry, &query);
        if (query.ret < 0) {
            tool_error("Failed to read image metadata: %s", g_strerror(-query.ret));
            ok = false;
        } else if (continues(&current, &query.extent)) {
            current.length += query.extent.length;
            g_free(query.extent.filename);
        } else {
            ok = current.length == 0 || print(&current, false);
            g_free(current.filename);
            current = query.extent;
        }
        offset += query.bytes;
    }
    ok = ok && print(&current, true);
    g_free(current.filename);
    return ok;
}

static bool map_image(const ImageSource *source, int64_t start, int64_t max_length, bool json)
{
    BlockBackend *image = image_open(source);
    int64_t end;
    bool ok;

    if (!image) {
        return false;
    }
    end = backend_size(image);
    if (max_length >= 0 && max_length < end - start) {
        end = start + max_length;
    }
    if (json) {
        printf("[");
    } else {
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
    }
    ok = map_range(image, start, end, json ? print_json : print_human);
    backend_free(image);
    return ok;
}

int img_map(int argc, char **argv)
{
    ImageSource source = { 0 };
    int64_t start = 0, max_length = -1;
    bool json = false;
    int option;

    while ((option = img_getopt(argc, argv, ":f:s:l:hU", options)) != -1) {
        switch (option) {
        case OPTION_OUTPUT:
            json = img_output_is_json(optarg);
            break;
        case 's':
            start = tool_parse_size("start offset", optarg);
            if (start < 0) {
                return EXIT_FAILURE;
            }
            break;
        case 'l':
            max_length = tool_parse_size("max length", optarg);
            if (max_length < 0) {
                return EXIT_FAILURE;
            }
            break;
        default:
            img_take_source_option(option, &source);
            break;
        }
    }
    source.name = img_only_filename(argc, argv);
    return map_image(&source, start, max_length, json) ? EXIT_SUCCESS : EXIT_FAILURE;
}
