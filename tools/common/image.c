/* SPDX-License-Identifier: MIT */
#include "image.h"

#include "block/backing.h"
#include "block/driver.h"
#include "qapi/json.h"
#include "qapi/keyval.h"
#include "tool.h"
#include "util/error.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *mode;
    bool direct, no_flush;
} cache_modes[] = {
    { "none", true, false },          { "off", true, false },        { "writeback", false, false },
    { "writethrough", false, false }, { "directsync", true, false }, { "unsafe", false, true },
};

static int find_cache_mode(const char *mode)
{
    for (size_t i = 0; i < G_N_ELEMENTS(cache_modes); i++) {
        if (strcmp(cache_modes[i].mode, mode) == 0) {
            return (int)i;
        }
    }
    return -1;
}

bool image_cache_is_valid(const char *mode)
{
    return find_cache_mode(mode) >= 0;
}

/* "driver=raw,file.filename=x" as "json:{...}". */
static char *image_opts_name(const char *text, GError **error)
{
    json_t *options = keyval_parse(text, "file", NULL, error);
    g_autofree char *json = NULL;

    if (!options) {
        return NULL;
    }
    json = qapi_json_text(options, false);
    json_decref(options);
    return g_strconcat("json:", json, NULL);
}

static void apply_cache(BlockdevOptions *options, const char *mode)
{
    int i = mode ? find_cache_mode(mode) : -1;

    if (i < 0) {
        return;
    }
    if (!options->cache) {
        options->cache = g_new0(BlockdevCacheOptions, 1);
    }
    if (!options->cache->has_direct) {
        options->cache->has_direct = true;
        options->cache->direct = cache_modes[i].direct;
    }
    if (!options->cache->has_no_flush) {
        options->cache->has_no_flush = true;
        options->cache->no_flush = cache_modes[i].no_flush;
    }
}

static void drop_backing(BlockdevOptions *options)
{
    if (options->driver == BLOCKDEV_DRIVER_QCOW2 && !options->u.qcow2.backing) {
        options->u.qcow2.backing = g_new0(BlockdevRefOrNull, 1);
        options->u.qcow2.backing->type = BLOCKDEV_REF_OR_NULL_TYPE_NULL;
    }
}

static void apply(BlockdevOptions *options, const ImageSource *source)
{
    if (!options->has_read_only) {
        options->has_read_only = true;
        options->read_only = !source->writable;
    }
    if (source->force_share && !options->has_force_share) {
        options->has_force_share = true;
        options->force_share = true;
    }
    if (source->no_backing) {
        drop_backing(options);
    }
    apply_cache(options, source->cache);
}

static BlockdevOptions *describe(const ImageSource *source, GError **error)
{
    g_autofree char *name = NULL;

    if (source->format && !driver_find(source->format)) {
        merino_error(error, "Unknown driver '%s'", source->format);
        return NULL;
    }
    if (!source->image_opts) {
        return image_options(source->name, source->format, NULL, error);
    }
    name = image_opts_name(source->name, error);
    return name ? image_options(name, NULL, NULL, error) : NULL;
}

/* To write to a disk whose format was guessed from what a guest may have written is dangerous. */
static void warn_of_guess(const ImageSource *source, const BlockdevOptions *options)
{
    if (source->quiet || source->format || source->image_opts || !source->writable ||
        options->driver != BLOCKDEV_DRIVER_RAW || g_str_has_prefix(source->name, "json:")) {
        return;
    }
    fflush(stdout);
    fprintf(stderr,
            "WARNING: Image format was not specified for '%s' and probing guessed raw.\n"
            "         Automatically detecting the format is dangerous for raw images, write "
            "operations on block 0 will be restricted.\n"
            "         Specify the 'raw' format explicitly to remove the restrictions.\n",
            source->name);
}

BlockBackend *image_try_open(const ImageSource *source, GError **error)
{
    g_autoptr(BlockdevOptions) options = describe(source, error);
    unsigned perm = PERM_CONSISTENT_READ;
    BlockBackend *backend;
    BlockNode *node;

    if (!options) {
        return NULL;
    }
    apply(options, source);
    node = source->for_check ? node_open_for_check(options, error) : node_open(options, error);
    if (!node) {
        return NULL;
    }
    if (source->writable && node->read_only) {
        merino_error(error, "Block node is read-only");
        node_unref(node);
        return NULL;
    }
    if (source->writable) {
        perm |= PERM_WRITE | PERM_RESIZE;
    }
    backend = backend_new("an unnamed block device", perm, PERM_ALL);
    if (!backend_attach(backend, node, error)) {
        backend_free(backend);
        backend = NULL;
    } else {
        warn_of_guess(source, options);
    }
    node_unref(node);
    return backend;
}

BlockBackend *image_open(const ImageSource *source)
{
    GError *error = NULL;
    BlockBackend *backend;

    if (source->image_opts && source->format) {
        tool_error("--image-opts and --format are mutually exclusive");
        return NULL;
    }
    backend = image_try_open(source, &error);
    if (!backend) {
        tool_report(error, "Could not open '%s'", source->name);
    }
    return backend;
}
