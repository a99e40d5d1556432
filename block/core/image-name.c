/* SPDX-License-Identifier: MIT */
/*
 * From the names of images to options: paths, names with a protocol in front, and "json:{...}".
 *
 * What a name gives is put together as JSON, with all values as text, since in such names numbers
 * and switches may be written either way; then it is decoded like an option line.
 *
 * When no format is named, the beginning of the image decides. The image is opened for that look
 * and closed again, since its driver opens it anew, with whatever options that wants.
 */
#include "image-name.h"
#include "block/backing.h"
#include "core-internal.h"
#include "qapi/codec.h"
#include "qapi/json.h"
#include "util/coroutine.h"
#include "util/error.h"

#include <jansson.h>
#include <string.h>
#include <sys/stat.h>

#define PROBE_BYTES 2048

typedef json_t JsonValue;
G_DEFINE_AUTOPTR_CLEANUP_FUNC(JsonValue, json_decref)

/* --- options as text --- */

/* Everything as text; JSON's null is written "". */
static json_t *as_text(const json_t *value)
{
    g_autofree char *text = NULL;

    if (json_is_boolean(value)) {
        return json_string(json_is_true(value) ? "on" : "off");
    }
    if (json_is_null(value)) {
        return json_string("");
    }
    if (json_is_string(value)) {
        return json_string(json_string_value(value));
    }
    text = qapi_json_text(value, false);
    return json_string(text);
}

/* Put `value` where `path` says, a name with dots between its steps. A path that another one takes
 * for a plain value is given up. */
static void put_by_path(json_t *object, const char *path, json_t *value)
{
    const char *dot;
    json_t *known;

    for (; (dot = strchr(path, '.')); path = dot + 1) {
        g_autofree char *step = g_strndup(path, dot - path);
        json_t *next = json_object_get(object, step);

        if (!json_is_object(next)) {
            next = json_object();
            json_object_set_new(object, step, next);
        }
        object = next;
    }
    known = json_object_get(object, path);
    if (json_is_object(value) && json_is_object(known)) {
        json_object_update(known, value);
        json_decref(value);
    } else {
        json_object_set_new(object, path, value);
    }
}

/* An object with the keys "0", "1", ... is a list. */
static json_t *fold_lists(json_t *value)
{
    const char *key;
    json_t *item, *list;
    void *next;

    json_object_foreach_safe(value, next, key, item)
    {
        json_object_set_new(value, key, fold_lists(json_incref(item)));
    }
    if (!json_is_object(value) || !json_object_get(value, "0")) {
        return value;
    }
    list = json_array();
    for (size_t i = 0; i < json_object_size(value); i++) {
        g_autofree char *index = g_strdup_printf("%zu", i);

        item = json_object_get(value, index);
        if (!item) {
            json_decref(list);
            return value;
        }
        json_array_append(list, item);
    }
    json_decref(value);
    return list;
}

static json_t *unfold(const json_t *value)
{
    json_t *ret, *item;
    const char *key;
    size_t i;

    if (json_is_array(value)) {
        ret = json_array();
        json_array_foreach(value, i, item)
        {
            json_array_append_new(ret, unfold(item));
        }
        return ret;
    }
    if (!json_is_object(value)) {
        return as_text(value);
    }
    ret = json_object();
    json_object_foreach((json_t *)value, key, item)
    {
        put_by_path(ret, key, unfold(item));
    }
    return ret;
}

/* --- plain names --- */

bool image_name_has_protocol(const char *name)
{
    size_t n = strcspn(name, ":/");

    return name[n] == ':';
}

/* A file's name is any bytes, not always UTF-8. What is decoded from here gets them as they are. */
static json_t *protocol_options(const char *driver, const char *filename)
{
    json_t *options = json_object();

    json_object_set_new(options, "driver", json_string(driver));
    json_object_set_new(options, "filename", json_string_nocheck(filename));
    return options;
}

static json_t *path_options(const char *path)
{
    struct stat st;
    bool device = stat(path, &st) == 0 && (S_ISBLK(st.st_mode) || S_ISCHR(st.st_mode));

    return protocol_options(device ? "host_device" : "file", path);
}

static json_t *encode_as_text(const BlockdevOptions *options)
{
    g_autoptr(JsonValue) encoded = qapi_encode(&qapi_type_BlockdevOptions, options);

    return unfold(encoded);
}

/* The options of the protocol node that a name without "json:" stands for. */
static json_t *plain_options(const char *name, GError **error)
{
    size_t n = strcspn(name, ":");
    g_autofree char *scheme = NULL;
    g_autoptr(BlockdevOptions) parsed = NULL;
    const BlockDriver *driver;

    if (!image_name_has_protocol(name)) {
        return path_options(name);
    }
    if (g_str_has_prefix(name, "file:")) {
        return protocol_options("file", name + n + 1);
    }
    scheme = g_strndup(name, n);
    driver = driver_find(scheme);
    if (!driver || !driver->parse_name) {
        merino_error(error, "Unknown protocol '%s'", scheme);
        return NULL;
    }
    parsed = driver->parse_name(name, error);
    return parsed ? encode_as_text(parsed) : NULL;
}

/* --- "json:{...}" --- */

static json_t *json_name_options(const char *text, GError **error)
{
    GError *local = NULL;
    g_autoptr(JsonValue) parsed = qapi_json_parse(text, strlen(text), &local);

    if (!parsed) {
        g_propagate_prefixed_error(error, local, "Could not parse the JSON options: ");
        return NULL;
    }
    if (!json_is_object(parsed)) {
        merino_error(error, "Invalid JSON object given");
        return NULL;
    }
    return fold_lists(unfold(parsed));
}

/* A protocol node that is described without its driver: the file name decides. */
static bool complete_file(json_t *options, GError **error)
{
    json_t *file = json_object_get(options, "file");
    json_t *name = json_object_get(file, "filename");
    g_autoptr(JsonValue) found = NULL;

    if (!json_is_string(name) || json_object_get(file, "driver")) {
        return true;
    }
    found = plain_options(json_string_value(name), error);
    return found && json_object_update(file, found) == 0;
}

/* --- formats --- */

/* Whether a node of the driver stands over a `file` of its own. */
static bool wants_file(const char *driver_name)
{
    BlockdevOptions options = { 0 };
    OptionIter iter;

    if (!BlockdevDriver_parse(driver_name, &options.driver)) {
        return false;
    }
    option_iter_init(&iter, &options);
    while (option_iter_next(&iter)) {
        if (iter.is_child && strcmp(iter.member->name, "file") == 0) {
            return true;
        }
    }
    return false;
}

static BlockdevOptions *decode(const json_t *options, GError **error)
{
    const char *driver = json_string_value(json_object_get(options, "driver"));

    if (!driver || !driver_find(driver)) {
        merino_error(error, "Unknown driver '%s'", driver ? driver : "");
        return NULL;
    }
    if (wants_file(driver) && !json_object_get(options, "file")) {
        merino_error(error, "A block device must be specified for \"file\"");
        return NULL;
    }
    return qapi_decode(&qapi_type_BlockdevOptions, options, QAPI_DECODE_KEYVAL, error);
}

typedef struct Probe {
    BlockBackend *backend;
    uint8_t head[PROBE_BYTES];
    int ret;
} Probe;

static void coroutine_fn probe_entry(void *opaque)
{
    Probe *probe = opaque;

    backend_co_enter(probe->backend); /* the end may be near: reads beyond it give zeroes */
    probe->ret = child_co_pread(backend_root(probe->backend), 0, PROBE_BYTES, probe->head);
    backend_leave(probe->backend);
}

/* The name of the format that the node's bytes are in; NULL with an error. */
static const char *probe_node(BlockNode *node, GError **error)
{
    g_autofree Probe *probe = g_new0(Probe, 1);
    bool ok;

    probe->backend = backend_new("an unnamed block device", PERM_CONSISTENT_READ, PERM_ALL);
    ok = backend_attach(probe->backend, node, error);
    if (ok) {
        coroutine_run(probe_entry, probe);
        ok = probe->ret == 0;
        if (!ok) {
            merino_error_errno(error, -probe->ret,
                               "Could not read image for determining its format");
        }
    }
    backend_free(probe->backend);
    return ok ? driver_probe(probe->head, sizeof(probe->head)) : NULL;
}

static const char *probe_file(const json_t *file, BlockNode *parent, GError **error)
{
    g_autoptr(BlockdevRef) ref =
        qapi_decode(&qapi_type_BlockdevRef, file, QAPI_DECODE_KEYVAL, error);
    const char *format = NULL;
    BlockNode *node;

    if (!ref) {
        return NULL;
    }
    if (ref->type == BLOCKDEV_REF_TYPE_DEFINITION) {
        g_clear_pointer(&ref->u.definition->node_name, g_free);
        /* To look needs no more, and an image that may not be written is looked at as well. */
        if (!parent && !ref->u.definition->has_read_only) {
            ref->u.definition->has_read_only = true;
            ref->u.definition->read_only = true;
        }
    }
    node = node_open_for(parent, ref, CHILD_COW, error);
    if (node) {
        format = probe_node(node, error);
        node_unref(node);
    }
    return format;
}

/* The whole from what a name gave: the format over its file. */
static json_t *with_format(json_t *given, bool is_json, const char *format, BlockNode *parent,
                           GError **error)
{
    const BlockDriver *driver = format ? driver_find(format) : NULL;
    json_t *options;

    if (format && !driver) {
        merino_error(error, "Unknown driver '%s'", format);
        return NULL;
    }
    if (is_json || (driver && driver->is_protocol)) {
        options = json_incref(given);
    } else {
        options = json_pack("{s:O}", "file", given);
    }
    if (format) {
        json_object_set_new(options, "driver", json_string(format));
    } else if (!json_object_get(options, "driver")) {
        json_t *file = json_object_get(options, "file");

        format = file ? probe_file(file, parent, error) : NULL;
        if (!file) {
            merino_error(error, "Must specify either driver or file");
        }
        if (!format) {
            json_decref(options);
            return NULL;
        }
        json_object_set_new(options, "driver", json_string(format));
    }
    return options;
}

BlockdevOptions *image_options(const char *filename, const char *format, BlockNode *parent,
                               GError **error)
{
    bool is_json = g_str_has_prefix(filename, "json:");
    g_autoptr(JsonValue) given = is_json ? json_name_options(filename + strlen("json:"), error)
                                         : plain_options(filename, error);
    g_autoptr(JsonValue) options = NULL;

    if (!given || (is_json && !complete_file(given, error))) {
        return NULL;
    }
    options = with_format(given, is_json, format, parent, error);
    return options ? decode(options, error) : NULL;
}

BlockdevOptions *image_file_options(const char *filename, GError **error)
{
    g_autoptr(JsonValue) options = plain_options(filename, error);

    return options ? decode(options, error) : NULL;
}
