/* SPDX-License-Identifier: MIT */
/*
 * merino-img info
 */
#include "block/backing.h"
#include "block/node.h"
#include "img.h"
#include "qapi/json.h"
#include "qapi/qapi-codec.h"
#include "tool.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const struct option options[] = {
    LONG_OPTIONS_ALL,
    { "format", required_argument, NULL, 'f' },
    { "output", required_argument, NULL, OPTION_OUTPUT },
    { "backing-chain", no_argument, NULL, OPTION_BACKING_CHAIN },
    { "image-opts", no_argument, NULL, OPTION_IMAGE_OPTS },
    { "force-share", no_argument, NULL, 'U' },
    { NULL, 0, NULL, 0 },
};

/* --- collecting --- */

/* That the image was opened without its backing file is our doing, and not to be seen in its name.
 */
static void restore_name(const ImageSource *source, const BlockNode *node, ImageInfo *info)
{
    if (!source->image_opts && !g_str_has_prefix(source->name, "json:") &&
        g_str_has_prefix(info->filename, "json:") && node->file) {
        g_free(info->filename);
        info->filename = g_strdup(node->file->node->filename);
    }
}

static ImageInfo *image_info(const ImageSource *source)
{
    BlockBackend *image = image_open(source);
    g_autoptr(BlockDeviceInfo) device = NULL;
    GError *error = NULL;

    if (!image) {
        return NULL;
    }
    device = node_info(backend_node(image), true, &error);
    if (device) {
        restore_name(source, backend_node(image), device->image);
    }
    backend_free(image);
    if (!device) {
        tool_report(error, NULL);
        return NULL;
    }
    return g_steal_pointer(&device->image);
}

/* The image, and as many of its backing files as are asked for; NULL with a message. */
static ImageInfoList *collect(ImageSource source, bool chain)
{
    g_autoptr(ImageInfoList) list = g_new0(ImageInfoList, 1);
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);

    source.no_backing = true;
    while (source.name) {
        ImageInfo *info;

        if (!g_hash_table_add(seen, g_strdup(source.name))) {
            tool_error("Backing file '%s' creates an infinite loop.", source.name);
            return NULL;
        }
        info = image_info(&source);
        if (!info) {
            return NULL;
        }
        image_info_list_append(list, info);
        source.name = chain ? info->full_backing_filename : NULL;
        source.format = info->backing_filename_format;
        source.image_opts = false;
    }
    return g_steal_pointer(&list);
}

/* --- printing --- */

static void print_value(const json_t *value, int indent);

/* "name:" and the value, behind a blank if it fits on the line. */
static void print_member(const char *name, const json_t *value, int indent)
{
    bool composite = json_is_object(value) || json_is_array(value);
    g_autofree char *words = g_strdelimit(g_strdup(name), "-", ' ');

    printf("%*s%s:%s", indent * 4, "", words, composite ? "\n" : " ");
    print_value(value, indent + 1);
    if (!composite) {
        printf("\n");
    }
}

static void print_value(const json_t *value, int indent)
{
    if (json_is_object(value)) {
        g_auto(GStrv) names = qapi_json_names(value);

        for (char **name = names; *name; name++) {
            print_member(*name, json_object_get(value, *name), indent);
        }
    } else if (json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value); i++) {
            g_autofree char *name = g_strdup_printf("[%zu]", i);

            print_member(name, json_array_get(value, i), indent);
        }
    } else if (json_is_string(value)) {
        printf("%s", json_string_value(value));
    } else {
        g_autofree char *text = qapi_json_text(value, false);

        printf("%s", text);
    }
}

static void print_specific(const ImageInfoSpecific *specific)
{
    json_t *value = image_info_specific_encode(specific);

    printf("Format specific information:\n");
    print_value(json_object_get(value, "data"), 1);
    json_decref(value);
}

static void print_snapshot(const SnapshotInfo *info)
{
    g_autofree char *size = tool_format_size((uint64_t)info->vm_state_size);
    g_autofree char *icount =
        info->has_icount ? g_strdup_printf("%" PRId64, info->icount) : g_strdup("");
    g_autofree char *clock =
        g_strdup_printf("%02d:%02d:%02d.%03d", (int)(info->vm_clock_sec / 3600),
                        (int)(info->vm_clock_sec / 60 % 60), (int)(info->vm_clock_sec % 60),
                        (int)(info->vm_clock_nsec / 1000000));
    time_t seconds = info->date_sec;
    struct tm local;
    char date[32];

    localtime_r(&seconds, &local);
    strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &local);
    printf("%-9s %-16s %8s%20s%13s%11s\n", info->id, info->name, size, date, clock, icount);
}

void img_print_snapshots(const SnapshotInfoList *list)
{
    printf("Snapshot list:\n%-9s %-16s %8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE", "DATE",
           "VM CLOCK", "ICOUNT");
    for (size_t i = 0; i < list->len; i++) {
        print_snapshot(list->items[i]);
    }
}

static void print_backing(const ImageInfo *info)
{
    if (!info->backing_filename) {
        return;
    }
    printf("backing file: %s", info->backing_filename);
    if (!info->full_backing_filename) {
        printf(" (cannot determine actual path)");
    } else if (strcmp(info->backing_filename, info->full_backing_filename) != 0) {
        printf(" (actual path: %s)", info->full_backing_filename);
    }
    printf("\n");
    if (info->backing_filename_format) {
        printf("backing file format: %s\n", info->backing_filename_format);
    }
}

static void print_human(const ImageInfo *info)
{
    g_autofree char *size = tool_format_size((uint64_t)info->virtual_size);
    g_autofree char *occupied = info->has_actual_size
                                    ? tool_format_size((uint64_t)info->actual_size)
                                    : g_strdup("unavailable");

    printf("image: %s\nfile format: %s\nvirtual size: %s (%" PRId64 " bytes)\ndisk size: %s\n",
           info->filename, info->format, size, info->virtual_size, occupied);
    if (info->has_encrypted && info->encrypted) {
        printf("encrypted: yes\n");
    }
    if (info->has_cluster_size) {
        printf("cluster_size: %" PRId64 "\n", info->cluster_size);
    }
    if (info->has_dirty_flag && info->dirty_flag) {
        printf("cleanly shut down: no\n");
    }
    print_backing(info);
    if (info->snapshots && info->snapshots->len > 0) {
        img_print_snapshots(info->snapshots);
    }
    if (info->format_specific) {
        print_specific(info->format_specific);
    }
}

static void print_list(const ImageInfoList *list, bool json, bool chain)
{
    if (json) {
        json_t *value = chain ? json_array() : image_info_encode(list->items[0]);

        for (size_t i = 0; chain && i < list->len; i++) {
            json_array_append_new(value, image_info_encode(list->items[i]));
        }
        img_print_json(value);
        return;
    }
    for (size_t i = 0; i < list->len; i++) {
        if (i > 0) {
            printf("\n");
        }
        print_human(list->items[i]);
    }
}

int img_info(int argc, char **argv)
{
    ImageSource source = { 0 };
    g_autoptr(ImageInfoList) list = NULL;
    bool json = false, chain = false;
    int option;

    while ((option = img_getopt(argc, argv, ":f:hU", options)) != -1) {
        switch (option) {
        case OPTION_OUTPUT:
            json = img_output_is_json(optarg);
            break;
        case OPTION_BACKING_CHAIN:
            chain = true;
            break;
        default:
            img_take_source_option(option, &source);
            break;
        }
    }
    source.name = img_only_filename(argc, argv);
    list = collect(source, chain);
    if (!list) {
        return EXIT_FAILURE;
    }
    print_list(list, json, chain);
    return EXIT_SUCCESS;
}
