/* SPDX-License-Identifier: MIT */
/*
 * Reading the header: fields, extensions, the backing file's name; each checked where it is read.
 *
 * What we do not know is kept as found, so that it is there when the header is written again. The
 * bitmaps extension is the one that may be wrong without harm: a damaged one is kept among the
 * unknown ones, with the reason in `bitmaps_fault`.
 */
#include "header.h"
#include "util/error.h"
#include "util/size.h"

#include <inttypes.h>
#include <string.h>

/* --- small things --- */

static void extension_done(void *data)
{
    g_free(((Qcow2Extension *)data)->data);
}

void qcow2_header_init(Qcow2Header *header)
{
    *header = (Qcow2Header){ 0 };
    header->extensions = g_array_new(FALSE, FALSE, sizeof(Qcow2Extension));
    g_array_set_clear_func(header->extensions, extension_done);
    header->feature_names = g_array_new(FALSE, FALSE, sizeof(Qcow2DiskFeatureName));
}

void qcow2_header_done(Qcow2Header *header)
{
    g_free(header->unknown_fields);
    g_free(header->backing_name);
    g_free(header->backing_format);
    g_free(header->data_file_name);
    g_free(header->bitmaps_fault);
    g_clear_pointer(&header->extensions, g_array_unref);
    g_clear_pointer(&header->feature_names, g_array_unref);
    *header = (Qcow2Header){ 0 };
}

uint64_t qcow2_l1_entries_for(const Qcow2Header *header, int64_t size)
{
    bool extended = header->incompatible & QCOW2_INCOMPAT_EXTENDED_L2;
    unsigned shift = 2 * header->cluster_bits - (extended ? 4 : 3);

    return ((uint64_t)size >> shift) + ((uint64_t)size & ((UINT64_C(1) << shift) - 1) ? 1 : 0);
}

bool qcow2_table_range_ok(const Qcow2Header *header, uint64_t offset, uint64_t bytes)
{
    return offset <= INT64_MAX - bytes &&
           is_aligned((int64_t)offset, INT64_C(1) << header->cluster_bits);
}

/* --- features --- */

static const Qcow2DiskFeatureName *find_name(const Qcow2Header *header, unsigned bit)
{
    for (guint i = 0; i < header->feature_names->len; i++) {
        const Qcow2DiskFeatureName *name =
            &g_array_index(header->feature_names, Qcow2DiskFeatureName, i);

        if (name->kind == 0 && name->bit == bit) {
            return name;
        }
    }
    return NULL;
}

bool qcow2_header_check_features(const Qcow2Header *header, GError **error)
{
    uint64_t unknown = header->incompatible & ~(uint64_t)QCOW2_INCOMPAT_KNOWN;
    g_autoptr(GString) text = g_string_new(NULL);
    g_autofree char *valid = NULL;

    if (!unknown) {
        return true;
    }
    for (guint i = 0; i < header->feature_names->len; i++) {
        const Qcow2DiskFeatureName *name =
            &g_array_index(header->feature_names, Qcow2DiskFeatureName, i);

        if (name->kind == 0 && name->bit < 64 && (unknown & (UINT64_C(1) << name->bit)) &&
            find_name(header, name->bit) == name) {
            g_string_append_printf(text, "%s%.*s", text->len ? ", " : "", (int)sizeof(name->name),
                                   name->name);
            unknown &= ~(UINT64_C(1) << name->bit);
        }
    }
    if (unknown) {
        g_string_append_printf(text, "%sUnknown incompatible feature: %" PRIx64,
                               text->len ? ", " : "", unknown);
    }
    valid = g_utf8_make_valid(text->str, -1);
    merino_error(error, "Unsupported qcow2 feature(s): %s", valid);
    return false;
}

/* --- fields --- */

static void fields_from_disk(Qcow2DiskHeader *field)
{
    field->magic = GUINT32_FROM_BE(field->magic);
    field->version = GUINT32_FROM_BE(field->version);
    field->backing_name_offset = GUINT64_FROM_BE(field->backing_name_offset);
    field->backing_name_bytes = GUINT32_FROM_BE(field->backing_name_bytes);
    field->cluster_bits = GUINT32_FROM_BE(field->cluster_bits);
    field->size = GUINT64_FROM_BE(field->size);
    field->crypt_method = GUINT32_FROM_BE(field->crypt_method);
    field->l1_entries = GUINT32_FROM_BE(field->l1_entries);
    field->l1_offset = GUINT64_FROM_BE(field->l1_offset);
    field->reftable_offset = GUINT64_FROM_BE(field->reftable_offset);
    field->reftable_clusters = GUINT32_FROM_BE(field->reftable_clusters);
    field->n_snapshots = GUINT32_FROM_BE(field->n_snapshots);
    field->snapshots_offset = GUINT64_FROM_BE(field->snapshots_offset);
    if (field->version == 2) {
        field->incompatible = field->compatible = field->autoclear = 0;
        field->refcount_order = 4;
        field->header_bytes = QCOW2_V2_HEADER_BYTES;
        field->compression_type = 0;
        return;
    }
    field->incompatible = GUINT64_FROM_BE(field->incompatible);
    field->compatible = GUINT64_FROM_BE(field->compatible);
    field->autoclear = GUINT64_FROM_BE(field->autoclear);
    field->refcount_order = GUINT32_FROM_BE(field->refcount_order);
    field->header_bytes = GUINT32_FROM_BE(field->header_bytes);
    if (field->header_bytes <= QCOW2_V3_HEADER_BYTES) {
        field->compression_type = 0;
    }
}

/* What must hold before anything else can be read. */
static bool check_shape(const Qcow2DiskHeader *field, GError **error)
{
    if (field->magic != QCOW2_MAGIC) {
        merino_error(error, "Image is not in qcow2 format");
    } else if (field->version < 2 || field->version > 3) {
        merino_error(error, "Unsupported qcow2 version %" PRIu32, field->version);
    } else if (field->cluster_bits < QCOW2_MIN_CLUSTER_BITS ||
               field->cluster_bits > QCOW2_MAX_CLUSTER_BITS) {
        merino_error(error, "Unsupported cluster size: 2^%" PRIu32, field->cluster_bits);
    } else if (field->version == 3 && field->header_bytes < QCOW2_V3_HEADER_BYTES) {
        merino_error(error, "qcow2 header too short");
    } else if (field->header_bytes > 1u << field->cluster_bits) {
        merino_error(error, "qcow2 header exceeds cluster size");
    } else if (field->backing_name_offset > UINT64_C(1) << field->cluster_bits) {
        merino_error(error, "Invalid backing file offset");
    } else {
        return true;
    }
    return false;
}

static const char *encryption_name(uint32_t method)
{
    return method == 1 ? "AES" : "LUKS";
}

static bool check_compression(const Qcow2DiskHeader *field, GError **error)
{
    bool flagged = field->incompatible & QCOW2_INCOMPAT_COMPRESSION;

    if (field->compression_type > QCOW2_COMPRESSION_TYPE_ZSTD) {
        merino_error(error, "qcow2: unknown compression type: %u", field->compression_type);
    } else if (flagged && field->compression_type == QCOW2_COMPRESSION_TYPE_ZLIB) {
        merino_error(error, "qcow2: Compression type incompatible feature bit must not be set");
    } else if (!flagged && field->compression_type != QCOW2_COMPRESSION_TYPE_ZLIB) {
        merino_error(error, "qcow2: Compression type incompatible feature bit must be set");
    } else {
        return true;
    }
    return false;
}

static bool check_encodings(const Qcow2DiskHeader *field, GError **error)
{
    int64_t subcluster = (INT64_C(1) << field->cluster_bits) / QCOW2_SUBCLUSTERS;

    if (!check_compression(field, error)) {
        return false;
    }
    if ((field->incompatible & QCOW2_INCOMPAT_EXTENDED_L2) &&
        field->cluster_bits < QCOW2_MIN_EXTENDED_L2_CLUSTER_BITS) {
        merino_error(error, "Unsupported subcluster size: %" PRId64, subcluster);
    } else if (field->refcount_order > QCOW2_MAX_REFCOUNT_ORDER) {
        merino_error(error, "Reference count entry width too large; may not exceed %d bits",
                     1 << QCOW2_MAX_REFCOUNT_ORDER);
    } else if (field->crypt_method > 2) {
        merino_error(error, "Unsupported encryption method %" PRIu32, field->crypt_method);
    } else if (field->crypt_method != 0) {
        merino_error(error, "Encrypted images are not supported: the image is encrypted with %s",
                     encryption_name(field->crypt_method));
    } else {
        return true;
    }
    return false;
}

static bool check_reftable(const Qcow2Header *header, const Qcow2DiskHeader *field, GError **error)
{
    uint64_t reftable_bytes = (uint64_t)field->reftable_clusters << field->cluster_bits;

    if (field->reftable_clusters == 0) {
        merino_error(error, "Image does not contain a reference count table");
    } else if (reftable_bytes > QCOW2_MAX_REFTABLE_BYTES) {
        merino_error(error, "Reference count table too large");
    } else if (!qcow2_table_range_ok(header, field->reftable_offset, reftable_bytes)) {
        merino_error(error, "Reference count table offset invalid");
    } else {
        return true;
    }
    return false;
}

bool qcow2_header_check_snapshots(const Qcow2Header *header, GError **error)
{
    uint64_t bytes = (uint64_t)header->n_snapshots * sizeof(Qcow2DiskSnapshot);

    if (header->n_snapshots > QCOW2_MAX_SNAPSHOTS) {
        merino_error(error, "Snapshot table too large");
        return false;
    }
    if (!qcow2_table_range_ok(header, (uint64_t)header->snapshots_offset, bytes)) {
        merino_error(error, "Snapshot table offset invalid");
        return false;
    }
    return true;
}

static bool check_l1(const Qcow2Header *header, const Qcow2DiskHeader *field, GError **error)
{
    uint64_t l1_bytes = (uint64_t)field->l1_entries * sizeof(uint64_t);
    uint64_t needed;

    if (l1_bytes > QCOW2_MAX_L1_BYTES) {
        merino_error(error, "Active L1 table too large");
        return false;
    }
    if (!qcow2_table_range_ok(header, field->l1_offset, l1_bytes)) {
        merino_error(error, "Active L1 table offset invalid");
        return false;
    }
    if (field->size > INT64_MAX - 511) {
        merino_error(error, "Image is too big");
        return false;
    }
    needed = qcow2_l1_entries_for(header, (int64_t)field->size);
    if (needed > INT32_MAX) {
        merino_error(error, "Image is too big");
    } else if (field->l1_entries < needed) {
        merino_error(error, "L1 table is too small");
    } else {
        return true;
    }
    return false;
}

static void take_fields(Qcow2Header *header, const Qcow2DiskHeader *field)
{
    header->version = field->version;
    header->cluster_bits = field->cluster_bits;
    header->size = (int64_t)field->size;
    header->l1_offset = (int64_t)field->l1_offset;
    header->l1_entries = field->l1_entries;
    header->reftable_offset = (int64_t)field->reftable_offset;
    header->reftable_clusters = field->reftable_clusters;
    header->n_snapshots = field->n_snapshots;
    header->snapshots_offset = (int64_t)field->snapshots_offset;
    header->incompatible = field->incompatible;
    header->compatible = field->compatible;
    header->autoclear = field->autoclear;
    header->refcount_order = field->refcount_order;
    header->compression_type = field->compression_type;
    header->header_bytes = field->header_bytes;
}

/* --- extensions --- */

/* Where an extension lies: in the first cluster, whose bytes are at `head`. */
typedef struct ExtensionView {
    uint32_t type;
    uint32_t bytes;
    const uint8_t *data;
} ExtensionView;

static bool take_backing_format(Qcow2Header *header, const ExtensionView *view, GError **error)
{
    if (view->bytes >= 16) {
        merino_error(error, "ERROR: ext_backing_format: len=%" PRIu32 " too large (>=16)",
                     view->bytes);
        return false;
    }
    g_free(header->backing_format);
    header->backing_format = g_strndup((const char *)view->data, view->bytes);
    return true;
}

static void take_feature_names(Qcow2Header *header, const ExtensionView *view)
{
    g_array_set_size(header->feature_names, 0);
    g_array_append_vals(header->feature_names, view->data,
                        view->bytes / sizeof(Qcow2DiskFeatureName));
}

static void keep_extension(Qcow2Header *header, const ExtensionView *view)
{
    Qcow2Extension kept = { view->type, view->bytes, g_memdup2(view->data, view->bytes) };

    g_array_append_val(header->extensions, kept);
}

/* Its numbers are judged where bitmaps are opened; what has another shape is kept as it is. */
static void take_bitmaps(Qcow2Header *header, const ExtensionView *view)
{
    Qcow2DiskBitmapExtension ext = { 0 };

    g_clear_pointer(&header->bitmaps_fault, g_free);
    memcpy(&ext, view->data, MIN(sizeof(ext), view->bytes));
    if (view->bytes != sizeof(ext) || ext.reserved != 0) {
        header->bitmaps_fault = g_strdup(ext.reserved ? "bitmaps_ext: Reserved field is not zero"
                                                      : "bitmaps_ext: Invalid extension length");
        keep_extension(header, view);
        return;
    }
    header->has_bitmaps = true;
    header->n_bitmaps = GUINT32_FROM_BE(ext.n_bitmaps);
    header->bitmap_dir_bytes = (int64_t)GUINT64_FROM_BE(ext.directory_bytes);
    header->bitmap_dir_offset = (int64_t)GUINT64_FROM_BE(ext.directory_offset);
}

static bool take_extension(Qcow2Header *header, const ExtensionView *view, GError **error)
{
    switch (view->type) {
    case QCOW2_EXT_BACKING_FORMAT:
        return take_backing_format(header, view, error);
    case QCOW2_EXT_FEATURE_NAMES:
        take_feature_names(header, view);
        return true;
    case QCOW2_EXT_DATA_FILE:
        g_free(header->data_file_name);
        header->data_file_name = g_strndup((const char *)view->data, view->bytes);
        return true;
    case QCOW2_EXT_BITMAPS:
        take_bitmaps(header, view);
        return true;
    case QCOW2_EXT_CRYPTO:
        merino_error(error, "CRYPTO header extension only expected with LUKS encryption method");
        return false;
    default:
        keep_extension(header, view);
        return true;
    }
}

/* Extensions fill the space between the header and the backing file's name, or the cluster. */
static bool read_extensions(Qcow2Header *header, const uint8_t *head, uint64_t end, GError **error)
{
    uint64_t at = header->header_bytes;

    while (at < end && end - at >= sizeof(Qcow2DiskExtension)) {
        Qcow2DiskExtension disk;
        ExtensionView view;

        memcpy(&disk, head + at, sizeof(disk));
        at += sizeof(disk);
        view.type = GUINT32_FROM_BE(disk.type);
        view.bytes = GUINT32_FROM_BE(disk.bytes);
        view.data = head + at;
        if (view.type == QCOW2_EXT_END) {
            return true;
        }
        if (view.bytes > end - at) {
            merino_error(error, "Header extension too large");
            return false;
        }
        if (!take_extension(header, &view, error)) {
            return false;
        }
        at += ((uint64_t)view.bytes + 7) & ~UINT64_C(7);
    }
    return true;
}

static bool read_backing_name(Qcow2Header *header, const Qcow2DiskHeader *field,
                              const uint8_t *head, GError **error)
{
    uint64_t cluster_size = UINT64_C(1) << field->cluster_bits;
    uint64_t offset = field->backing_name_offset, bytes = field->backing_name_bytes;

    if (offset == 0) {
        return true;
    }
    if (bytes > QCOW2_MAX_BACKING_NAME || bytes > cluster_size - offset) {
        merino_error(error, "Backing file name too long");
        return false;
    }
    header->backing_name = g_strndup((const char *)head + offset, bytes);
    if (header->backing_name[0] == '\0') {
        g_clear_pointer(&header->backing_name, g_free);
    }
    return true;
}

/* When they are written, extensions follow right behind, where their alignment lets them. */
static void keep_unknown_fields(Qcow2Header *header, const uint8_t *head)
{
    if (header->header_bytes > QCOW2_OUR_HEADER_BYTES) {
        size_t bytes = header->header_bytes - QCOW2_OUR_HEADER_BYTES;

        header->unknown_field_bytes = (size_t)align_up((int64_t)bytes, 8);
        header->unknown_fields = g_malloc0(header->unknown_field_bytes);
        memcpy(header->unknown_fields, head + QCOW2_OUR_HEADER_BYTES, bytes);
    }
}

/* --- reading --- */

/* QEMU's order: names of features come before the fields that need them, and what a newer format
 * may have changed is looked at only when its features are known. */
static bool parse(Qcow2Header *header, const Qcow2DiskHeader *field, const uint8_t *head,
                  GError **error)
{
    uint64_t end = field->backing_name_offset ? field->backing_name_offset
                                              : UINT64_C(1) << field->cluster_bits;
    g_autoptr(GError) extension_error = NULL;
    bool extensions_ok;

    take_fields(header, field);
    keep_unknown_fields(header, head);
    extensions_ok = read_extensions(header, head, end, &extension_error);
    if (!qcow2_header_check_features(header, error) || !check_encodings(field, error) ||
        !check_reftable(header, field, error) || !check_l1(header, field, error)) {
        return false;
    }
    if (!extensions_ok) {
        g_propagate_error(error, g_steal_pointer(&extension_error));
        return false;
    }
    if ((header->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW) &&
        !(header->incompatible & QCOW2_INCOMPAT_DATA_FILE)) {
        merino_error(error, "data-file-raw requires a data file");
        return false;
    }
    return read_backing_name(header, field, head, error);
}

typedef struct HeadRead {
    BlockChild *file;
    void *buf;
    int64_t bytes;
    int ret;
} HeadRead;

static void coroutine_fn head_read_entry(void *opaque)
{
    HeadRead *read = opaque;

    read->ret = child_co_pread(read->file, 0, read->bytes, read->buf);
}

static bool read_head(BlockChild *file, void *buf, int64_t bytes, GError **error)
{
    HeadRead read = { file, buf, bytes };

    coroutine_run(head_read_entry, &read);
    if (read.ret < 0) {
        merino_error_errno(error, -read.ret, "Could not read qcow2 header");
        return false;
    }
    return true;
}

bool qcow2_header_read(BlockChild *file, Qcow2Header *ret, GError **error)
{
    g_autofree uint8_t *head = NULL;
    Qcow2DiskHeader field;

    if (!read_head(file, &field, sizeof(field), error)) {
        return false;
    }
    fields_from_disk(&field);
    if (!check_shape(&field, error)) {
        return false;
    }
    head = g_malloc((gsize)1 << field.cluster_bits);
    if (!read_head(file, head, INT64_C(1) << field.cluster_bits, error)) {
        return false;
    }
    qcow2_header_init(ret);
    if (!parse(ret, &field, head, error)) {
        qcow2_header_done(ret);
        return false;
    }
    return true;
}
