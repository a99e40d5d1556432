/* SPDX-License-Identifier: MIT */
/*
 * What of an image's format can be changed afterwards. Texts are QEMU's.
 *
 * Steps that need version 3 come after the one that leads to it and before the one that leads
 * away. Each is durable before the next begins and leaves a whole image.
 */
#include "amend.h"
#include "mapping.h"
#include "options.h"
#include "requests.h"
#include "util/error.h"
#include "util/size.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* What the image is to be. */
typedef struct Target {
    unsigned version;
    unsigned refcount_order;
    bool lazy_refcounts;
    bool data_file_raw;
} Target;

/* --- checks --- */

static int refuse(GError **error, int ret, const char *words)
{
    merino_error(error, "%s", words);
    return ret;
}

static int check_refcounts(const Qcow2 *q, const BlockAmendOptions *options, Target *target,
                           GError **error)
{
    int64_t bits = options->has_refcount_bits ? options->refcount_bits : q->refcount_bits;

    if (bits < 1 || bits > 64 || !is_power_of_2((uint64_t)bits)) {
        return refuse(error, -EINVAL,
                      "Refcount width must be a power of two and may not exceed 64 bits");
    }
    target->refcount_order = (unsigned)g_bit_nth_lsf((gulong)bits, -1);
    if (target->version < 3 && bits != 16) {
        return q->header.version < 3
                   ? refuse(error, -EINVAL,
                            "Refcount widths other than 16 bits require compatibility level 1.1 "
                            "or above (use compat=1.1 or greater)")
                   : refuse(error, -ENOTSUP, "compat=0.10 requires refcount_bits=16");
    }
    return 0;
}

static int check_names(const Qcow2 *q, const BlockAmendOptions *options, GError **error)
{
    const char *backing = q->header.backing_name ?: "";
    const char *format = q->header.backing_format ?: "";

    if ((options->backing_file && strcmp(options->backing_file, backing) != 0) ||
        (options->backing_fmt && strcmp(options->backing_fmt, format) != 0)) {
        merino_error(error, "Cannot amend the backing file");
        merino_error_hint(error, "You can use 'qemu-img rebase' instead.");
        return -EINVAL;
    }
    if (options->data_file && !has_data_file(q)) {
        return refuse(error, -EINVAL,
                      "data-file can only be set for images that use an external data file");
    }
    if (options->has_data_file_raw && options->data_file_raw && !data_file_is_raw(q)) {
        return refuse(error, -EINVAL, "data-file-raw cannot be set on existing images");
    }
    return 0;
}

/* Whether a compressed cluster is there: 1, 0 or -errno. */
static int coroutine_fn has_compressed_cluster(Qcow2 *q)
{
    for (int64_t at = 0; at < q->header.size;) {
        Qcow2Mapping map;
        int ret = qcow2_map(q, at, q->header.size - at, &map);

        if (ret < 0 || map.type == MAP_COMPRESSED) {
            return ret < 0 ? ret : 1;
        }
        at += map.bytes;
    }
    return 0;
}

/* Version 2 knows just one way to compress. */
static int coroutine_fn check_compression(Qcow2 *q, GError **error)
{
    int ret =
        q->header.compression_type == QCOW2_COMPRESSION_TYPE_ZLIB ? 0 : has_compressed_cluster(q);

    if (ret < 0) {
        merino_error_errno(error, -ret, "Could not read the tables of the image");
    } else if (ret > 0) {
        merino_error(error,
                     "Cannot downgrade an image with %s compression type and existing compressed "
                     "clusters",
                     Qcow2CompressionType_str(q->header.compression_type));
        ret = -ENOTSUP;
    }
    return ret;
}

static int coroutine_fn check_downgrade(Qcow2 *q, GError **error)
{
    uint64_t ignored = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_COMPRESSION;
    uint64_t features = q->header.incompatible & ~ignored;

    if (has_data_file(q)) {
        return refuse(error, -ENOTSUP, "Cannot downgrade an image with a data file");
    }
    if (features) {
        merino_error(error,
                     "Cannot downgrade an image with incompatible features 0x%" PRIx64 " set",
                     features);
        return -ENOTSUP;
    }
    if (q->n_snapshots) {
        return refuse(error, -ENOTSUP, "Internal snapshots prevent downgrade of image");
    }
    if (q->header.has_bitmaps || bitmap_list_next(q->node->bitmaps, NULL)) {
        return refuse(error, -ENOTSUP, "Bitmaps prevent downgrade of image");
    }
    return check_compression(q, error);
}

static int check_size(const Qcow2 *q, const BlockAmendOptions *options, GError **error)
{
    if (!options->has_size || options->size == q->header.size) {
        return 0;
    }
    return bitmap_list_check_resize(q->node->bitmaps, options->size, error) ? 0 : -EINVAL;
}

static int coroutine_fn check(Qcow2 *q, const BlockAmendOptions *options, Target *target,
                              GError **error)
{
    int ret;

    target->version = q->header.version;
    if (options->has_version) {
        target->version = options->version == BLOCKDEV_QCOW2_VERSION_V2 ? 2 : 3;
    }
    target->lazy_refcounts = q->header.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS;
    if (options->has_lazy_refcounts) {
        target->lazy_refcounts = options->lazy_refcounts;
    }
    target->data_file_raw =
        options->has_data_file_raw ? options->data_file_raw : data_file_is_raw(q);
    if (options->has_lazy_refcounts && options->lazy_refcounts && target->version < 3) {
        return refuse(error, -EINVAL,
                      "Lazy refcounts only supported with compatibility level 1.1 and above (use "
                      "compat=1.1 or greater)");
    }
    ret = check_names(q, options, error);
    ret = ret ? ret : check_refcounts(q, options, target, error);
    if (ret == 0 && target->version < q->header.version) {
        ret = check_downgrade(q, error);
    }
    return ret ? ret : check_size(q, options, error);
}

/* --- steps --- */

static int coroutine_fn clean(Qcow2 *q, GError **error)
{
    int ret = qcow2_mark_clean(q);

    if (ret < 0) {
        merino_error_errno(error, -ret, "Could not write the tables of the image");
    }
    return ret;
}

static int coroutine_fn upgrade(Qcow2 *q, GError **error)
{
    int ret;

    q->header.version = 3;
    ret = qcow2_header_commit(q, error);
    if (ret < 0) {
        q->header.version = 2;
    }
    return ret;
}

static int coroutine_fn set_lazy(Qcow2 *q, bool lazy, GError **error)
{
    uint64_t before = q->header.compatible;
    int ret = clean(q, error);

    if (ret < 0) {
        return ret;
    }
    q->header.compatible = (before & ~(uint64_t)QCOW2_COMPAT_LAZY_REFCOUNTS) |
                           (lazy ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0);
    ret = qcow2_header_commit(q, error);
    if (ret < 0) {
        q->header.compatible = before;
        return ret;
    }
    qcow2_options_renew(q);
    return 0;
}

static int coroutine_fn set_data_file(Qcow2 *q, const char *name, GError **error)
{
    char *before = q->header.data_file_name;
    int ret;

    q->header.data_file_name = *name ? g_strdup(name) : NULL;
    ret = qcow2_header_commit(q, error);
    if (ret < 0) {
        g_free(q->header.data_file_name);
        q->header.data_file_name = before;
        return ret;
    }
    g_free(before);
    return 0;
}

/* Version 2 has no way to say that a cluster is zero: it has no place where nothing is below, else
 * zeroes are written. */
static int coroutine_fn expand_zeroes(Qcow2 *q, const BlockAmendOptions *options, GError **error)
{
    int64_t at = 0;
    int ret = 0;

    while (at < q->header.size && ret == 0) {
        Qcow2Mapping map;

        ret = qcow2_map(q, at, q->header.size - at, &map);
        if (ret == 0 && (map.type == MAP_ZERO || map.type == MAP_ZERO_HOST)) {
            int64_t end = align_up(at + map.bytes, q->cluster_size);

            ret = q->node->backing || map.type == MAP_ZERO_HOST
                      ? qcow2_write_zero_data(q, at, MIN(end, q->header.size) - at, 0)
                      : qcow2_forget_clusters(q, at, end - at);
        }
        at += ret == 0 ? map.bytes : 0;
        if (options->progress) {
            options->progress(at, q->header.size, options->progress_opaque);
        }
    }
    if (ret < 0) {
        merino_error_errno(error, -ret, "Failed to turn zero into data clusters");
    }
    return ret;
}

static int coroutine_fn downgrade(Qcow2 *q, const BlockAmendOptions *options, GError **error)
{
    Qcow2Header before = q->header;
    int ret = expand_zeroes(q, options, error);

    ret = ret ? ret : clean(q, error);
    if (ret < 0) {
        return ret;
    }
    before = q->header;
    q->header.version = 2;
    q->header.header_bytes = QCOW2_V2_HEADER_BYTES;
    q->header.compatible = q->header.autoclear = q->header.incompatible = 0;
    q->header.compression_type = QCOW2_COMPRESSION_TYPE_ZLIB;
    q->header.feature_names = g_array_new(FALSE, FALSE, sizeof(Qcow2DiskFeatureName));
    ret = qcow2_header_commit(q, error);
    if (ret < 0) {
        g_array_unref(q->header.feature_names);
        q->header = before;
        return ret;
    }
    g_array_unref(before.feature_names);
    g_clear_pointer(&q->header.unknown_fields, g_free);
    q->header.unknown_field_bytes = 0;
    qcow2_options_renew(q);
    return 0;
}

static int coroutine_fn resize(Qcow2 *q, int64_t size, GError **error)
{
    int ret = bitmap_list_co_before_resize(q->node->bitmaps);

    if (ret < 0) {
        merino_error_errno(error, -ret, "Could not mark the bitmaps of the disk");
        return ret;
    }
    return qcow2_resize(q, size, PREALLOC_MODE_OFF, error);
}

/* --- all of them --- */

static int coroutine_fn change(Qcow2 *q, const BlockAmendOptions *options, const Target *target,
                               GError **error)
{
    bool is_lazy = q->header.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS;
    int ret = 0;

    if (target->version > q->header.version) {
        ret = upgrade(q, error);
    }
    if (ret == 0 && target->refcount_order != q->header.refcount_order) {
        ret = qcow2_amend_refcounts(q, target->refcount_order, options, error);
    }
    if (ret == 0 && options->data_file) {
        ret = set_data_file(q, options->data_file, error);
    }
    if (ret == 0 && target->data_file_raw != data_file_is_raw(q)) {
        ret = qcow2_set_features(q, q->header.incompatible,
                                 q->header.autoclear & ~(uint64_t)QCOW2_AUTOCLEAR_DATA_FILE_RAW,
                                 error);
    }
    if (ret == 0 && options->has_lazy_refcounts && target->lazy_refcounts != is_lazy) {
        ret = set_lazy(q, target->lazy_refcounts, error);
    }
    if (ret == 0 && options->has_size && options->size != q->header.size) {
        ret = resize(q, options->size, error);
    }
    if (ret == 0 && target->version < q->header.version) {
        ret = downgrade(q, options, error);
    }
    return ret;
}

int coroutine_fn qcow2_co_amend(BlockNode *node, const BlockAmendOptions *options, GError **error)
{
    Qcow2 *q = node->state;
    Target target = { 0 };
    int ret = check(q, options, &target, error);

    return ret ? ret : change(q, options, &target, error);
}
