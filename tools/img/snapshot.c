/* SPDX-License-Identifier: MIT */
/*
 * merino-img snapshot: snapshots inside of an image.
 */
#include "block/image.h"
#include "img.h"
#include "tool.h"

#include <stdio.h>
#include <stdlib.h>

static const struct option options[] = {
    LONG_OPTIONS_ALL,
    { "image-opts", no_argument, NULL, OPTION_IMAGE_OPTS },
    { "force-share", no_argument, NULL, 'U' },
    { NULL, 0, NULL, 0 },
};

static bool list(BlockNode *node)
{
    g_autoptr(SnapshotInfoList) snapshots = node_snapshot_list(node);

    if (snapshots->len > 0) {
        img_print_snapshots(snapshots);
    }
    return true;
}

static bool create(BlockNode *node, const char *name)
{
    int64_t now_us = g_get_real_time();
    SnapshotInfo info = {
        .id = (char *)"",
        .name = (char *)name,
        .date_sec = now_us / G_USEC_PER_SEC,
        .date_nsec = now_us % G_USEC_PER_SEC * 1000,
        .has_icount = true,
    };
    GError *error = NULL;
    int ret = node_snapshot_create(node, &info, &error);

    if (ret < 0) {
        tool_error("Could not create snapshot '%s': %d (%s)", name, ret, g_strerror(-ret));
        g_error_free(error);
    }
    return ret == 0;
}

static bool apply(BlockNode *node, const char *name)
{
    GError *error = NULL;

    if (node_snapshot_goto(node, name, &error) < 0) {
        tool_report(error, "Could not apply snapshot '%s'", name);
        return false;
    }
    return true;
}

static bool delete (BlockNode *node, const char *name)
{
    GError *error = NULL;

    if (node_snapshot_delete(node, name, &error) < 0) {
        tool_report(error, "Could not delete snapshot '%s'", name);
        return false;
    }
    return true;
}

static bool act(BlockNode *node, int action, const char *name)
{
    switch (action) {
    case 'l':
        return list(node);
    case 'c':
        return create(node, name);
    case 'a':
        return apply(node, name);
    case 'd':
        return delete (node, name);
    default:
        return true;
    }
}

int img_snapshot(int argc, char **argv)
{
    ImageSource source = { 0 };
    BlockBackend *image;
    const char *name = NULL;
    int option, action = 0;
    bool ok;

    while ((option = img_getopt(argc, argv, ":la:c:d:hqU", options)) != -1) {
        switch (option) {
        case 'l':
        case 'a':
        case 'c':
        case 'd':
            if (action) {
                img_usage_error("Cannot mix '-l', '-a', '-c', '-d'");
            }
            action = option;
            name = optarg;
            break;
        default:
            img_take_source_option(option, &source);
            break;
        }
    }
    source.name = img_only_filename(argc, argv);
    source.writable = action != 'l';
    image = image_open(&source);
    if (!image) {
        return EXIT_FAILURE;
    }
    ok = act(backend_node(image), action, name);
    backend_free(image);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
