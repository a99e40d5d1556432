/* SPDX-License-Identifier: MIT */
#include "create-image.h"

#include "block/backing.h"
#include "block/driver.h"
#include "block/job.h"
#include "create-options.h"
#include "image.h"
#include "qapi/codec.h"
#include "qapi/qapi-codec.h"
#include "tool.h"
#include "util/error.h"
#include "util/size.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SECTOR 512

/* A creation on its way. */
typedef struct Making {
    const ImageCreation *asked;
    const char *protocol; /* driver of the file; borrowed from constants */
    char *path;           /* of the file, without a protocol in front */
    CreateValues *values;
    int64_t size;    /* of the disk, in whole sectors */
    bool open_ended; /* the error's last line is printed without a newline */
} Making;

static void making_done(Making *making)
{
    create_values_free(making->values);
    g_free(making->path);
}

/* --- what can be made --- */

static bool find_protocol(const char *filename, Making *ret, GError **error)
{
    size_t n = strcspn(filename, ":/");

    if (g_str_has_prefix(filename, "file:")) {
        filename += n + 1;
    } else if (filename[n] == ':') {
        merino_error(error, "Unknown protocol '%.*s'", (int)n, filename);
        return false;
    }
    ret->protocol = "file";
    ret->path = g_strdup(filename);
    return true;
}

static const CreateOption *find_format(const char *format, GError **error)
{
    const CreateOption *options;

    if (!driver_find(format)) {
        merino_error(error, "Unknown file format '%s'", format);
        return NULL;
    }
    options = create_options_of(format);
    if (!options) {
        merino_error(error, "Format driver '%s' does not support image creation", format);
    }
    return options;
}

static bool set_backing(Making *making, GError **error)
{
    const ImageCreation *asked = making->asked;

    if (asked->backing_file &&
        !create_values_set(making->values, "backing_file", asked->backing_file, NULL)) {
        merino_error(error, "Backing file not supported for file format '%s'", asked->format);
        return false;
    }
    if (asked->backing_fmt &&
        !create_values_set(making->values, "backing_fmt", asked->backing_fmt, NULL)) {
        merino_error(error, "Backing file format not supported for file format '%s'",
                     asked->format);
        return false;
    }
    return true;
}

static bool parse_options(Making *making, GError **error)
{
    const ImageCreation *asked = making->asked;
    const CreateOption *format = find_format(asked->format, error);

    if (!format || !find_protocol(asked->filename, making, error)) {
        return false;
    }
    making->values = create_values_new(format, create_options_of(making->protocol));
    if (asked->options && !create_values_parse(making->values, asked->options, error)) {
        return false;
    }
    if (asked->size >= 0) {
        g_autofree char *text = g_strdup_printf("%" G_GINT64_FORMAT, asked->size);

        if (create_values_get(making->values, "size")) {
            merino_error(error, "The image size must be specified only once");
            return false;
        }
        create_values_set(making->values, "size", text, NULL);
    }
    return set_backing(making, error);
}

/* --- the backing file --- */

/* Names of backing files are relative to the image. */
static char *full_backing_name(const char *filename, const char *backing)
{
    g_autofree char *folder = NULL;

    if (g_path_is_absolute(backing) || backing[strcspn(backing, ":/")] == ':' ||
        !strchr(filename, '/')) {
        return g_strdup(backing);
    }
    folder = g_path_get_dirname(filename);
    return g_build_filename(folder, backing, NULL);
}

static bool open_backing(Making *making, const char *backing, GError **error)
{
    const char *format = create_values_get(making->values, "backing_fmt");
    bool sized = create_values_get(making->values, "size") != NULL;
    g_autofree char *full = full_backing_name(making->path, backing);
    ImageSource source = { .name = full, .format = format };
    BlockBackend *image = image_try_open(&source, error);
    bool ok = true;

    if (!image) {
        merino_error_hint(error, "Could not open backing image.");
        return false;
    }
    if (!format) {
        merino_error(error, "Backing file specified without backing format");
        merino_error_hint(error, "Detected format of %s.", backend_node(image)->driver->name);
        making->open_ended = true;
        ok = false;
    } else if (!sized) {
        g_autofree char *text = g_strdup_printf("%" G_GINT64_FORMAT, backend_size(image));

        create_values_set(making->values, "size", text, NULL);
    }
    backend_free(image);
    return ok;
}

static bool look_at_backing(Making *making, GError **error)
{
    const char *backing = create_values_get(making->values, "backing_file");

    if (!backing) {
        return true;
    }
    if (strcmp(backing, making->asked->filename) == 0) {
        merino_error(error, "Error: Trying to create an image with the same filename as the "
                            "backing file");
        return false;
    }
    if (!backing[0]) {
        merino_error(error, "Expected backing file name, got empty string");
        return false;
    }
    return making->asked->blind || open_backing(making, backing, error);
}

/* --- making --- */

static bool makes_qcow2(const Making *making)
{
    return strcmp(making->asked->format, "qcow2") == 0;
}

/* The names of files are any bytes: what is decoded from here gets them as they are. */
static json_t *file_node(const char *path)
{
    json_t *node = json_pack("{s:s}", "driver", "file");

    json_object_set_new(node, "filename", json_string_nocheck(path));
    return node;
}

/* Set `member` to an option's value, if it has one. */
static void pass(const Making *making, json_t *options, const char *member, const char *name)
{
    const char *text = create_values_get(making->values, name);

    if (text) {
        json_object_set_new(options, member, json_string_nocheck(text));
    }
}

static void set_number(json_t *options, const char *member, int64_t number)
{
    g_autofree char *text = g_strdup_printf("%" G_GINT64_FORMAT, number);

    json_object_set_new(options, member, json_string(text));
}

/* Decode as a command line would be, and make it. Consumes `options`. */
static int make(json_t *options, GError **error)
{
    g_autoptr(BlockdevCreateOptions) decoded =
        qapi_decode(&qapi_type_BlockdevCreateOptions, options, QAPI_DECODE_KEYVAL, error);

    json_decref(options);
    return decoded ? blockdev_create_wait(decoded, error) : -EINVAL;
}

static bool check_preallocation(const char *mode, GError **error)
{
    if (mode && qapi_enum_parse(&qapi_type_PreallocMode, mode) < 0) {
        merino_error(error, "invalid parameter value: %s", mode);
        return false;
    }
    return true;
}

/* `whole`: with the size and preallocation of the disk; else an empty one for a format. */
static int make_file(const Making *making, const char *path, bool whole, GError **error)
{
    json_t *options = file_node(path);

    set_number(options, "size", whole ? making->size : 0);
    pass(making, options, "nocow", "nocow");
    pass(making, options, "extent-size-hint", "extent_size_hint");
    if (whole) {
        if (!check_preallocation(create_values_get(making->values, "preallocation"), error)) {
            json_decref(options);
            return -EINVAL;
        }
        pass(making, options, "preallocation", "preallocation");
    }
    return make(options, error);
}

static json_t *qcow2_options(const Making *making)
{
    const char *compat = create_values_get(making->values, "compat");
    json_t *options = json_pack("{s:s, s:o}", "driver", "qcow2", "file", file_node(making->path));

    set_number(options, "size", making->size);
    if (compat) {
        const char *version = strcmp(compat, "0.10") == 0  ? "v2"
                              : strcmp(compat, "1.1") == 0 ? "v3"
                                                           : compat;

        json_object_set_new(options, "version", json_string_nocheck(version));
    }
    pass(making, options, "backing-file", "backing_file");
    pass(making, options, "backing-fmt", "backing_fmt");
    pass(making, options, "cluster-size", "cluster_size");
    pass(making, options, "extended-l2", "extended_l2");
    pass(making, options, "preallocation", "preallocation");
    pass(making, options, "compression-type", "compression_type");
    pass(making, options, "data-file-raw", "data_file_raw");
    pass(making, options, "lazy-refcounts", "lazy_refcounts");
    pass(making, options, "refcount-bits", "refcount_bits");
    return options;
}

/* On failure the file that was made for it goes. */
static int make_qcow2(const Making *making, GError **error)
{
    const char *data_file = create_values_get(making->values, "data_file");
    json_t *options;
    int ret = make_file(making, making->path, false, error);

    if (ret < 0) {
        return ret;
    }
    options = qcow2_options(making);
    if (data_file) {
        ret = make_file(making, data_file, false, error);
        json_object_set_new(options, "data-file", file_node(data_file));
    }
    if (ret < 0) {
        json_decref(options);
    } else {
        ret = make(options, error);
    }
    if (ret < 0) {
        unlink(making->path);
    }
    return ret;
}

/* Sizes that no disk has are refused in the words of the format. */
static bool set_size(Making *making, GError **error)
{
    uint64_t size = (uint64_t)create_values_number(making->values, "size", 0);

    if (size > INT64_MAX - (SECTOR - 1)) {
        merino_error(error, "%s",
                     makes_qcow2(making) ? "Could not resize image: Image size cannot be negative"
                                         : "Could not resize file: Invalid argument");
        return false;
    }
    making->size = align_up((int64_t)size, SECTOR);
    return true;
}

static bool make_image(Making *making, GError **error)
{
    GError *local = NULL;
    int ret;

    if (!set_size(making, error)) {
        return false;
    }
    ret = makes_qcow2(making) ? make_qcow2(making, &local)
                              : make_file(making, making->path, true, &local);

    if (ret == -EFBIG) {
        g_error_free(local);
        merino_error(error, "The image size is too large for file format '%s'",
                     making->asked->format);
    } else if (ret < 0) {
        g_propagate_error(error, local);
    }
    return ret >= 0;
}

static bool create(Making *making, GError **error)
{
    if (!parse_options(making, error) || !look_at_backing(making, error)) {
        return false;
    }
    if (!create_values_get(making->values, "size")) {
        merino_error(error, "Image creation needs a size parameter");
        return false;
    }
    if (!making->asked->quiet) {
        printf("Formatting '%s', fmt=%s", making->asked->filename, making->asked->format);
        create_values_print(making->values);
        printf("\n");
    }
    if (create_values_unsupported(making->values)) {
        merino_error(error, "Encrypted images are not supported: option '%s'",
                     create_values_unsupported(making->values));
        return false;
    }
    return make_image(making, error);
}

bool image_create(const ImageCreation *creation)
{
    Making making = { .asked = creation };
    GError *error = NULL;
    bool ok = create(&making, &error);

    if (!ok && making.open_ended) {
        /* As qemu-img has it; scripts compare it to the byte. */
        fprintf(stderr, "%s: %s: %s", g_get_prgname(), creation->filename, error->message);
        g_error_free(error);
    } else if (!ok) {
        tool_report(error, "%s", creation->filename);
    }
    making_done(&making);
    return ok;
}

bool image_create_help(const char *format, const char *filename)
{
    GError *error = NULL;
    Making making = { 0 };
    const CreateOption *options = find_format(format, &error);
    g_autoptr(CreateValues) values = NULL;

    if (!options || (filename && !find_protocol(filename, &making, &error))) {
        tool_report(error, NULL);
        return false;
    }
    values = create_values_new(options, filename ? create_options_of(making.protocol) : NULL);
    if (filename) {
        printf("Supported options:\n");
    } else {
        printf("Supported %s options:\n", format);
    }
    create_values_print_help(values);
    if (!filename) {
        printf("\nThe protocol level may support further options.\n"
               "Specify the target filename to include those options.\n");
    }
    making_done(&making);
    return true;
}
