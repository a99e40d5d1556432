/* SPDX-License-Identifier: MIT */
/*
 * merino-img check: looks for what is wrong in an image, and mends it.
 *
 * Exit status: 0 nothing is wrong, 1 the check could not be made, 2 the image is damaged, 3 it has
 * leaks, 63 its format cannot be checked.
 */
#include "block/driver.h"
#include "block/image.h"
#include "img.h"
#include "qapi/qapi-codec.h"
#include "tool.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    STATUS_ERRORS = 1,
    STATUS_CORRUPT = 2,
    STATUS_LEAKS = 3,
    STATUS_NOT_SUPPORTED = 63,
};

static const struct option options[] = {
    LONG_OPTIONS_ALL,
    { "format", required_argument, NULL, 'f' },
    { "repair", required_argument, NULL, 'r' },
    { "output", required_argument, NULL, OPTION_OUTPUT },
    { "image-opts", no_argument, NULL, OPTION_IMAGE_OPTS },
    { "force-share", no_argument, NULL, 'U' },
    { NULL, 0, NULL, 0 },
};

typedef struct CheckArgs {
    ImageSource source;
    unsigned fix;
    bool json;
} CheckArgs;

/* --- checking --- */

static void print_finding(const char *line, void *opaque)
{
    fflush(stdout);
    fprintf(stderr, "%s\n", line);
}

static int run_check(BlockNode *node, const CheckArgs *args, unsigned fix, BlockCheckResult *ret)
{
    GError *error = NULL;
    int rc;

    *ret = (BlockCheckResult){ .message = args->source.quiet ? NULL : print_finding };
    rc = node_check(node, ret, fix, &error);
    if (rc == -ENOTSUP && !node->driver->co_check) {
        tool_report(error, NULL);
        return STATUS_NOT_SUPPORTED;
    }
    if (rc < 0) {
        tool_report(error, NULL);
        return STATUS_ERRORS;
    }
    return 0;
}

/* --- printing --- */

static void print_json(const BlockNode *node, const char *name, const BlockCheckResult *result)
{
    bool blocks = result->total_clusters > 0;
    ImageCheck check = {
        .filename = (char *)name,
        .format = (char *)node->driver->name,
        .check_errors = result->check_errors,
        .has_image_end_offset = result->image_end_offset != 0,
        .image_end_offset = result->image_end_offset,
        .has_corruptions = result->corruptions != 0,
        .corruptions = result->corruptions,
        .has_leaks = result->leaks != 0,
        .leaks = result->leaks,
        .has_corruptions_fixed = result->corruptions_fixed != 0,
        .corruptions_fixed = result->corruptions_fixed,
        .has_leaks_fixed = result->leaks_fixed != 0,
        .leaks_fixed = result->leaks_fixed,
        .has_total_clusters = blocks,
        .total_clusters = result->total_clusters,
        .has_allocated_clusters = blocks && result->allocated_clusters != 0,
        .allocated_clusters = result->allocated_clusters,
        .has_fragmented_clusters = blocks && result->fragmented_clusters != 0,
        .fragmented_clusters = result->fragmented_clusters,
        .has_compressed_clusters = blocks && result->compressed_clusters != 0,
        .compressed_clusters = result->compressed_clusters,
    };

    img_print_json(image_check_encode(&check));
}

static void print_verdict(const BlockCheckResult *result)
{
    if (!result->corruptions && !result->leaks && !result->check_errors) {
        printf("No errors were found on the image.\n");
        return;
    }
    if (result->corruptions) {
        printf("\n%" PRId64 " errors were found on the image.\n"
               "Data may be corrupted, or further writes to the image may corrupt it.\n",
               result->corruptions);
    }
    if (result->leaks) {
        printf("\n%" PRId64 " leaked clusters were found on the image.\n"
               "This means waste of disk space, but no harm to data.\n",
               result->leaks);
    }
    if (result->check_errors) {
        printf("\n%" PRId64 " internal errors have occurred during the check.\n",
               result->check_errors);
    }
}

static double percent(int64_t part, int64_t whole)
{
    return (double)part * 100 / (double)whole;
}

static void print_human(const BlockCheckResult *result)
{
    int64_t allocated = result->allocated_clusters;

    print_verdict(result);
    if (result->total_clusters && allocated) {
        printf("%" PRId64 "/%" PRId64 " = %0.2f%% allocated, %0.2f%% fragmented, "
               "%0.2f%% compressed clusters\n",
               allocated, result->total_clusters, percent(allocated, result->total_clusters),
               percent(result->fragmented_clusters, allocated),
               percent(result->compressed_clusters, allocated));
    }
    if (result->image_end_offset > 0) {
        printf("Image end offset: %" PRId64 "\n", result->image_end_offset);
    }
}

/* --- the command --- */

/* Something was mended: say so, and look once more whether all is well. */
static int check_again(BlockNode *node, const CheckArgs *args, BlockCheckResult *result)
{
    BlockCheckResult first = *result;
    int status;

    if (!args->source.quiet && !args->json) {
        printf("The following inconsistencies were found and repaired:\n\n"
               "    %" PRId64 " leaked clusters\n"
               "    %" PRId64 " corruptions\n\n"
               "Double checking the fixed image now...\n",
               first.leaks_fixed, first.corruptions_fixed);
    }
    status = run_check(node, args, 0, result);
    result->leaks_fixed = first.leaks_fixed;
    result->corruptions_fixed = first.corruptions_fixed;
    return status;
}

static int exit_status(const BlockCheckResult *result)
{
    if (result->corruptions) {
        return STATUS_CORRUPT;
    }
    if (result->leaks) {
        return STATUS_LEAKS;
    }
    return result->check_errors ? STATUS_ERRORS : 0;
}

static int check_node(BlockNode *node, const CheckArgs *args)
{
    BlockCheckResult result;
    int status = run_check(node, args, args->fix, &result);

    if (status == 0 && (result.corruptions_fixed || result.leaks_fixed)) {
        status = check_again(node, args, &result);
    }
    if (status != 0) {
        return status;
    }
    if (args->json) {
        print_json(node, args->source.name, &result);
    } else if (!args->source.quiet) {
        print_human(&result);
    }
    return exit_status(&result);
}

static void parse_repair(const char *arg, CheckArgs *args)
{
    if (strcmp(arg, "leaks") == 0) {
        args->fix = CHECK_FIX_LEAKS;
    } else if (strcmp(arg, "all") == 0) {
        args->fix = CHECK_FIX_LEAKS | CHECK_FIX_ERRORS;
    } else {
        img_usage_error("Unknown option value for -r (expecting 'leaks' or 'all'): %s", arg);
    }
    args->source.writable = true;
}

int img_check(int argc, char **argv)
{
    CheckArgs args = { .source = { .for_check = true } };
    BlockBackend *image;
    int option, status;

    while ((option = img_getopt(argc, argv, ":hf:r:T:qU", options)) != -1) {
        switch (option) {
        case 'r':
            parse_repair(optarg, &args);
            break;
        case 'T':
            args.source.cache = optarg;
            break;
        case OPTION_OUTPUT:
            args.json = img_output_is_json(optarg);
            break;
        default:
            img_take_source_option(option, &args.source);
            break;
        }
    }
    args.source.name = img_only_filename(argc, argv);
    if (args.source.cache && !image_cache_is_valid(args.source.cache)) {
        tool_error("Invalid source cache option: %s", args.source.cache);
        return STATUS_ERRORS;
    }
    image = image_open(&args.source);
    if (!image) {
        return STATUS_ERRORS;
    }
    status = check_node(backend_node(image), &args);
    backend_free(image);
    return status;
}
