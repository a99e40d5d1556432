/* SPDX-License-Identifier: MIT */
/*
 * New images.
 *
 * The image is laid out in memory: the header, the refcount table, its blocks, the L1 table, each
 * in clusters of its own, one behind the other; then written as plain bytes, the header last. What
 * is to be allocated from the beginning is allocated by the image itself, opened as a node.
 */
#include "block/backend.h"
#include "header.h"
#include "options.h"
#include "refcount-bits.h"
#include "util/error.h"
#include "util/event-loop.h"
#include "util/size.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define DEFAULT_CLUSTER_SIZE 65536
#define DEFAULT_REFCOUNT     16
#define CREATE_PERMS         (PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE)

/* An image to be made. */
typedef struct Creation {
    const BlockdevCreateOptionsQcow2 *options;
    Qcow2Header header;
    BlockBackend *file;
    BlockBackend *data_file; /* or NULL */

    /* The layout, in clusters: header, refcount table, refcount blocks, L1. */
    int64_t cluster_size;
    int64_t n_reftable, n_refblocks, n_l1;
} Creation;

/* --- what was asked for, checked; texts are QEMU's --- */

static bool is_v2(const BlockdevCreateOptionsQcow2 *options)
{
    return options->has_version && options->version == BLOCKDEV_QCOW2_VERSION_V2;
}

static bool has_extended(const BlockdevCreateOptionsQcow2 *options)
{
    return options->has_extended_l2 && options->extended_l2;
}

static bool is_raw(const BlockdevCreateOptionsQcow2 *options)
{
    return options->has_data_file_raw && options->data_file_raw;
}

static PreallocMode prealloc_mode(const BlockdevCreateOptionsQcow2 *options)
{
    PreallocMode mode = options->has_preallocation ? options->preallocation : PREALLOC_MODE_OFF;

    return mode == PREALLOC_MODE_OFF && is_raw(options) ? PREALLOC_MODE_METADATA : mode;
}

static bool check_size(const BlockdevCreateOptionsQcow2 *options, GError **error)
{
    if (!is_aligned((int64_t)options->size, 512)) {
        merino_error(error, "Image size must be a multiple of 512 bytes");
        return false;
    }
    return true;
}

static bool check_clusters(const BlockdevCreateOptionsQcow2 *options, GError **error)
{
    uint64_t size = options->has_cluster_size ? options->cluster_size : DEFAULT_CLUSTER_SIZE;

    if (size < 1 << QCOW2_MIN_CLUSTER_BITS || size > 1 << QCOW2_MAX_CLUSTER_BITS ||
        !is_power_of_2(size)) {
        merino_error(error, "Cluster size must be a power of two between %d and %dk",
                     1 << QCOW2_MIN_CLUSTER_BITS, 1 << (QCOW2_MAX_CLUSTER_BITS - 10));
        return false;
    }
    if (has_extended(options) && is_v2(options)) {
        merino_error(error, "Extended L2 entries are only supported with compatibility level 1.1 "
                            "and above (use version=v3 or greater)");
        return false;
    }
    if (has_extended(options) && size < 1 << QCOW2_MIN_EXTENDED_L2_CLUSTER_BITS) {
        merino_error(error,
                     "Extended L2 entries are only supported with cluster sizes of at least %d "
                     "bytes",
                     1 << QCOW2_MIN_EXTENDED_L2_CLUSTER_BITS);
        return false;
    }
    return true;
}

static bool check_backing(const BlockdevCreateOptionsQcow2 *options, GError **error)
{
    PreallocMode mode = options->has_preallocation ? options->preallocation : PREALLOC_MODE_OFF;

    if (mode != PREALLOC_MODE_OFF && options->backing_file && !has_extended(options)) {
        merino_error(error, "Backing file and preallocation can only be used at the same time if "
                            "extended_l2 is on");
    } else if (options->has_backing_fmt && !options->backing_file) {
        merino_error(error, "Backing format cannot be used without backing file");
    } else {
        return true;
    }
    return false;
}

static bool check_refcounts(const BlockdevCreateOptionsQcow2 *options, GError **error)
{
    int64_t bits = options->has_refcount_bits ? options->refcount_bits : DEFAULT_REFCOUNT;

    if (options->has_lazy_refcounts && options->lazy_refcounts && is_v2(options)) {
        merino_error(error, "Lazy refcounts only supported with compatibility level 1.1 and above "
                            "(use version=v3 or greater)");
    } else if (bits < 1 || bits > 64 || !is_power_of_2((uint64_t)bits)) {
        merino_error(error, "Refcount width must be a power of two and may not exceed 64 bits");
    } else if (bits != DEFAULT_REFCOUNT && is_v2(options)) {
        merino_error(error, "Different refcount widths than 16 bits require compatibility level "
                            "1.1 or above (use version=v3 or greater)");
    } else {
        return true;
    }
    return false;
}

static bool check_data_file(const BlockdevCreateOptionsQcow2 *options, GError **error)
{
    if (is_raw(options) && !options->data_file) {
        merino_error(error, "data-file-raw requires data-file");
    } else if (is_raw(options) && options->backing_file) {
        merino_error(error, "Backing file and data-file-raw cannot be used at the same time");
    } else if (options->data_file && is_v2(options)) {
        merino_error(error, "External data files are only supported with compatibility level 1.1 "
                            "and above (use version=v3 or greater)");
    } else if (options->has_compression_type && is_v2(options) &&
               options->compression_type != QCOW2_COMPRESSION_TYPE_ZLIB) {
        merino_error(error, "Non-zlib compression type is only supported with compatibility level "
                            "1.1 and above (use version=v3 or greater)");
    } else if (options->encrypt) {
        merino_error(error, "Encrypted images are not supported");
    } else {
        return true;
    }
    return false;
}

static bool check_options(const BlockdevCreateOptionsQcow2 *options, GError **error)
{
    return check_size(options, error) && check_clusters(options, error) &&
           check_backing(options, error) && check_refcounts(options, error) &&
           check_data_file(options, error);
}

/* --- the header --- */

static unsigned log2_of(uint64_t value)
{
    return g_bit_nth_lsf(value, -1);
}

static void fill_features(const BlockdevCreateOptionsQcow2 *options, Qcow2Header *header)
{
    if (options->has_lazy_refcounts && options->lazy_refcounts) {
        header->compatible |= QCOW2_COMPAT_LAZY_REFCOUNTS;
    }
    if (options->has_compression_type && options->compression_type != QCOW2_COMPRESSION_TYPE_ZLIB) {
        header->compression_type = options->compression_type;
        header->incompatible |= QCOW2_INCOMPAT_COMPRESSION;
    }
    if (has_extended(options)) {
        header->incompatible |= QCOW2_INCOMPAT_EXTENDED_L2;
    }
    if (options->data_file) {
        header->incompatible |= QCOW2_INCOMPAT_DATA_FILE;
    }
    if (is_raw(options)) {
        header->autoclear |= QCOW2_AUTOCLEAR_DATA_FILE_RAW;
    }
}

static bool check_disk_size(const Qcow2Header *header, uint64_t size, GError **error)
{
    const int64_t max = INT64_MAX - GiB + 1;

    if (size > INT64_MAX) {
        merino_error(error, "Could not resize image: Image size cannot be negative");
    } else if ((int64_t)size > max) {
        merino_error(error,
                     "Could not resize image: offset(%" PRIu64 ") exceeds maximum(%" PRId64 ")",
                     size, max);
    } else if (qcow2_l1_entries_for(header, (int64_t)size) * 8 > QCOW2_MAX_L1_BYTES) {
        merino_error_errno(error, EFBIG, "Could not resize image: Failed to grow the L1 table");
    } else {
        return true;
    }
    return false;
}

static bool fill_header(Creation *creation, GError **error)
{
    const BlockdevCreateOptionsQcow2 *options = creation->options;
    Qcow2Header *header = &creation->header;

    header->version = is_v2(options) ? 2 : 3;
    header->cluster_bits =
        log2_of(options->has_cluster_size ? options->cluster_size : DEFAULT_CLUSTER_SIZE);
    header->refcount_order =
        log2_of(options->has_refcount_bits ? (uint64_t)options->refcount_bits : DEFAULT_REFCOUNT);
    fill_features(options, header);
    if (!check_disk_size(header, options->size, error)) {
        return false;
    }
    header->size = (int64_t)options->size;
    header->l1_entries = (uint32_t)qcow2_l1_entries_for(header, header->size);
    header->backing_name = g_strdup(options->backing_file);
    if (options->has_backing_fmt) {
        header->backing_format = g_strdup(BlockdevDriver_str(options->backing_fmt));
    }
    return true;
}

/* --- the layout --- */

static int64_t divide_up(int64_t value, int64_t by)
{
    return (value + by - 1) / by;
}

static int64_t n_clusters(const Creation *creation)
{
    return 1 + creation->n_reftable + creation->n_refblocks + creation->n_l1;
}

/* Refcount blocks count themselves and their table: add until they suffice. */
static void lay_out(Creation *creation)
{
    Qcow2Header *header = &creation->header;
    int64_t counts_per_block = INT64_C(1) << (header->cluster_bits + 3 - header->refcount_order);

    creation->cluster_size = INT64_C(1) << header->cluster_bits;
    creation->n_l1 = divide_up((int64_t)header->l1_entries * 8, creation->cluster_size);
    creation->n_reftable = creation->n_refblocks = 1;
    for (;;) {
        int64_t n_refblocks = divide_up(n_clusters(creation), counts_per_block);
        int64_t n_reftable = divide_up(n_refblocks * 8, creation->cluster_size);

        if (n_refblocks == creation->n_refblocks && n_reftable == creation->n_reftable) {
            break;
        }
        creation->n_refblocks = n_refblocks;
        creation->n_reftable = n_reftable;
    }
    header->reftable_offset = creation->cluster_size;
    header->reftable_clusters = (uint32_t)creation->n_reftable;
    header->l1_offset =
        creation->n_l1 ? (n_clusters(creation) - creation->n_l1) * creation->cluster_size : 0;
}

/* The refcount table and its blocks, as they lie in the file. */
static uint8_t *refcounts(const Creation *creation)
{
    int64_t blocks_at = creation->n_reftable * creation->cluster_size;
    uint8_t *bytes = g_malloc0(blocks_at + creation->n_refblocks * creation->cluster_size);

    for (int64_t i = 0; i < creation->n_refblocks; i++) {
        uint64_t entry =
            GUINT64_TO_BE((uint64_t)((1 + creation->n_reftable + i) * creation->cluster_size));

        memcpy(bytes + i * 8, &entry, sizeof(entry));
    }
    for (int64_t i = 0; i < n_clusters(creation); i++) {
        refcount_bits_set(bytes + blocks_at, i, creation->header.refcount_order, 1);
    }
    return bytes;
}

/* --- to the file --- */

static int coroutine_fn write_at(BlockBackend *file, int64_t offset, void *bytes, size_t size)
{
    g_auto(IoVector) vec = { 0 };

    iov_init_buf(&vec, bytes, size);
    return backend_co_pwritev(file, offset, (int64_t)size, &vec, 0);
}

static int coroutine_fn write_tables(Creation *creation)
{
    g_autofree uint8_t *bytes = refcounts(creation);
    int64_t cluster_size = creation->cluster_size;
    size_t size = (size_t)((creation->n_reftable + creation->n_refblocks) * cluster_size);
    int ret = write_at(creation->file, cluster_size, bytes, size);

    if (ret == 0 && creation->n_l1) {
        ret = backend_co_pwrite_zeroes(creation->file, creation->header.l1_offset,
                                       creation->n_l1 * cluster_size, 0);
    }
    return ret;
}

static int coroutine_fn write_image(Creation *creation, GError **error)
{
    g_autoptr(GError) local = NULL;
    g_autofree uint8_t *head = NULL;
    size_t size;
    int ret;

    head = qcow2_header_encode(&creation->header, &size, &local);
    if (!head) {
        const BlockdevCreateOptionsQcow2 *options = creation->options;
        bool too_long = strlen(options->backing_file ?: "") > QCOW2_MAX_BACKING_NAME;

        merino_error_errno(error, too_long ? EINVAL : ENOSPC,
                           "Could not assign backing file '%s' with format '%s'",
                           options->backing_file ?: "",
                           creation->header.backing_format ?: "unknown");
        return too_long ? -EINVAL : -ENOSPC;
    }
    ret = write_tables(creation);
    if (ret == 0) {
        ret = backend_co_flush(creation->file);
    }
    if (ret == 0) {
        ret = write_at(creation->file, 0, head, size);
    }
    if (ret == 0) {
        ret = backend_co_flush(creation->file);
    }
    if (ret < 0) {
        merino_error_errno(error, -ret, "Could not write the new image");
    }
    return ret;
}

/* --- steps --- */

/* What was there goes. Where the size is fixed (a block device), it must suffice. */
static int coroutine_fn clear_file(Creation *creation, GError **error)
{
    int64_t size = n_clusters(creation) * creation->cluster_size;
    g_autoptr(GError) ignored = NULL;

    if (!backend_co_resize(creation->file, 0, &ignored) && backend_size(creation->file) >= size) {
        return 0;
    }
    return backend_co_resize(creation->file, size, error) ? 0 : -EIO;
}

static int coroutine_fn open_files(Creation *creation, GError **error)
{
    const BlockdevCreateOptionsQcow2 *options = creation->options;

    creation->file = backend_co_open(options->file, CREATE_PERMS, PERM_ALL, error);
    if (!creation->file) {
        return -EIO;
    }
    if (!options->data_file) {
        return 0;
    }
    creation->data_file = backend_co_open(options->data_file, CREATE_PERMS, PERM_ALL, error);
    if (!creation->data_file) {
        return -EIO;
    }
    if (backend_node(creation->data_file) == backend_node(creation->file)) {
        merino_error(error, "Node '%s' cannot be the image and its external data file at once",
                     backend_node(creation->file)->node_name);
        return -EINVAL;
    }
    creation->header.data_file_name = g_strdup(backend_node(creation->data_file)->filename);
    return 0;
}

static int coroutine_fn size_data_file(Creation *creation, GError **error)
{
    if (!creation->data_file || backend_size(creation->data_file) >= creation->header.size) {
        return 0;
    }
    return backend_co_resize(creation->data_file, creation->header.size, error) ? 0 : -EIO;
}

/* What is written from now on is written by the image. */
static void let_go(void *opaque)
{
    Creation *creation = opaque;

    backend_set_perm(creation->file, 0, PERM_ALL, NULL);
    if (creation->data_file) {
        backend_set_perm(creation->data_file, 0, PERM_ALL, NULL);
    }
}

/* The new image as a node over the files that are open. Caller closes it. */
static BlockBackend *coroutine_fn open_image(const Creation *creation, GError **error)
{
    BlockdevRef file = { .type = BLOCKDEV_REF_TYPE_REFERENCE };
    BlockdevRef data_file = { .type = BLOCKDEV_REF_TYPE_REFERENCE };
    BlockdevRefOrNull no_backing = { .type = BLOCKDEV_REF_OR_NULL_TYPE_NULL };
    BlockdevOptions options = { .driver = BLOCKDEV_DRIVER_QCOW2 };
    BlockdevRef image = { .type = BLOCKDEV_REF_TYPE_DEFINITION, .u.definition = &options };

    file.u.reference = backend_node(creation->file)->node_name;
    options.u.qcow2.file = &file;
    options.u.qcow2.backing = &no_backing;
    if (creation->data_file) {
        data_file.u.reference = backend_node(creation->data_file)->node_name;
        options.u.qcow2.data_file = &data_file;
    }
    return backend_co_open(&image, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL, error);
}

static int coroutine_fn preallocate(Creation *creation, GError **error)
{
    PreallocMode mode = prealloc_mode(creation->options);
    BlockBackend *image;
    int ret;

    if (mode == PREALLOC_MODE_OFF || creation->header.size == 0) {
        return 0;
    }
    co_run_control(let_go, creation);
    image = open_image(creation, error);
    if (!image) {
        return -EIO;
    }
    backend_co_enter(image);
    ret = qcow2_preallocate(backend_node(image)->state, 0, creation->header.size, mode, error);
    backend_leave(image);
    backend_co_close(image);
    return ret;
}

static int coroutine_fn create(Creation *creation, GError **error)
{
    int ret = open_files(creation, error);

    if (ret == 0 && !fill_header(creation, error)) {
        ret = -EINVAL;
    }
    if (ret == 0) {
        lay_out(creation);
        ret = clear_file(creation, error);
    }
    if (ret == 0) {
        ret = write_image(creation, error);
    }
    if (ret == 0) {
        ret = size_data_file(creation, error);
    }
    return ret < 0 ? ret : preallocate(creation, error);
}

int coroutine_fn qcow2_co_create(const BlockdevCreateOptions *options, GError **error)
{
    Creation creation = { .options = &options->u.qcow2 };
    int ret;

    if (!check_options(creation.options, error)) {
        return -EINVAL;
    }
    qcow2_header_init(&creation.header);
    ret = create(&creation, error);
    backend_co_close(creation.data_file);
    backend_co_close(creation.file);
    qcow2_header_done(&creation.header);
    return ret;
}
