/* SPDX-License-Identifier: MIT */
/*
 * The header as bytes: fields, extensions, and the backing file's name behind them. Extensions are
 * in QEMU's order, but for that of bitmaps, which comes first: so it lies in the first sector
 * whatever follows, and changes together with the fields (Q6).
 */
#include "header.h"
#include "util/error.h"

#include <string.h>

static const struct {
    uint8_t kind, bit;
    const char *name;
} our_feature_names[] = {
    { 0, 0, "dirty bit" },        { 0, 1, "corrupt bit" },         { 0, 2, "external data file" },
    { 0, 3, "compression type" }, { 0, 4, "extended L2 entries" }, { 1, 0, "lazy refcounts" },
    { 2, 0, "bitmaps" },          { 2, 1, "raw external data" },
};

/* --- encoding --- */

static void put_fields(const Qcow2Header *header, GByteArray *out)
{
    bool v3 = header->version >= 3;
    Qcow2DiskHeader disk = {
        .magic = GUINT32_TO_BE(QCOW2_MAGIC),
        .version = GUINT32_TO_BE(header->version),
        .cluster_bits = GUINT32_TO_BE(header->cluster_bits),
        .size = GUINT64_TO_BE((uint64_t)header->size),
        .l1_entries = GUINT32_TO_BE(header->l1_entries),
        .l1_offset = GUINT64_TO_BE((uint64_t)header->l1_offset),
        .reftable_offset = GUINT64_TO_BE((uint64_t)header->reftable_offset),
        .reftable_clusters = GUINT32_TO_BE(header->reftable_clusters),
        .n_snapshots = GUINT32_TO_BE(header->n_snapshots),
        .snapshots_offset = GUINT64_TO_BE((uint64_t)header->snapshots_offset),
        .incompatible = GUINT64_TO_BE(header->incompatible),
        .compatible = GUINT64_TO_BE(header->compatible),
        .autoclear = GUINT64_TO_BE(header->autoclear),
        .refcount_order = GUINT32_TO_BE(header->refcount_order),
        .header_bytes =
            GUINT32_TO_BE(QCOW2_OUR_HEADER_BYTES + (uint32_t)header->unknown_field_bytes),
        .compression_type = (uint8_t)header->compression_type,
    };

    g_byte_array_append(out, (const uint8_t *)&disk,
                        v3 ? QCOW2_OUR_HEADER_BYTES : QCOW2_V2_HEADER_BYTES);
    if (v3 && header->unknown_field_bytes) {
        g_byte_array_append(out, header->unknown_fields, (guint)header->unknown_field_bytes);
    }
}

static void put_padding(GByteArray *out)
{
    static const uint8_t zeroes[8];

    g_byte_array_append(out, zeroes, -out->len & 7);
}

static void put_extension(GByteArray *out, uint32_t type, const void *data, size_t bytes)
{
    Qcow2DiskExtension disk = { GUINT32_TO_BE(type), GUINT32_TO_BE((uint32_t)bytes) };

    put_padding(out);
    g_byte_array_append(out, (const uint8_t *)&disk, sizeof(disk));
    if (bytes) {
        g_byte_array_append(out, data, (guint)bytes);
    }
}

static void put_text_extension(GByteArray *out, uint32_t type, const char *text)
{
    if (text) {
        put_extension(out, type, text, strlen(text));
    }
}

static void put_feature_names(const Qcow2Header *header, GByteArray *out)
{
    Qcow2DiskFeatureName ours[G_N_ELEMENTS(our_feature_names)] = { 0 };

    if (header->feature_names->len) {
        put_extension(out, QCOW2_EXT_FEATURE_NAMES, header->feature_names->data,
                      header->feature_names->len * sizeof(Qcow2DiskFeatureName));
        return;
    }
    if (header->version < 3 || 1 << header->cluster_bits < QCOW2_FEATURE_NAMES_MIN_CLUSTER) {
        return;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(ours); i++) {
        ours[i].kind = our_feature_names[i].kind;
        ours[i].bit = our_feature_names[i].bit;
        memcpy(ours[i].name, our_feature_names[i].name, strlen(our_feature_names[i].name));
    }
    put_extension(out, QCOW2_EXT_FEATURE_NAMES, ours, sizeof(ours));
}

static void put_bitmaps(const Qcow2Header *header, GByteArray *out)
{
    Qcow2DiskBitmapExtension disk = {
        .n_bitmaps = GUINT32_TO_BE(header->n_bitmaps),
        .directory_bytes = GUINT64_TO_BE((uint64_t)header->bitmap_dir_bytes),
        .directory_offset = GUINT64_TO_BE((uint64_t)header->bitmap_dir_offset),
    };

    if (header->has_bitmaps) {
        put_extension(out, QCOW2_EXT_BITMAPS, &disk, sizeof(disk));
    }
}

/* The end, and the backing file's name behind it. */
static void put_backing_name(const Qcow2Header *header, GByteArray *out)
{
    Qcow2DiskHeader *disk;

    put_extension(out, QCOW2_EXT_END, NULL, 0);
    if (!header->backing_name) {
        return;
    }
    disk = (Qcow2DiskHeader *)out->data;
    disk->backing_name_offset = GUINT64_TO_BE((uint64_t)out->len);
    disk->backing_name_bytes = GUINT32_TO_BE((uint32_t)strlen(header->backing_name));
    g_byte_array_append(out, (const uint8_t *)header->backing_name,
                        (guint)strlen(header->backing_name));
}

static bool fits(const Qcow2Header *header, const GByteArray *out, GError **error)
{
    if (header->backing_name && strlen(header->backing_name) > QCOW2_MAX_BACKING_NAME) {
        merino_error(error, "Backing file name too long");
        return false;
    }
    if (out->len > 1u << header->cluster_bits) {
        merino_error(error, "The header with its extensions and the backing file's name does not "
                            "fit in a cluster");
        return false;
    }
    return true;
}

static uint8_t *encode(const Qcow2Header *header, bool names, size_t *ret_bytes, GError **error)
{
    GByteArray *out = g_byte_array_new();

    put_fields(header, out);
    put_bitmaps(header, out);
    put_text_extension(out, QCOW2_EXT_BACKING_FORMAT, header->backing_format);
    put_text_extension(out, QCOW2_EXT_DATA_FILE, header->data_file_name);
    if (names) {
        put_feature_names(header, out);
    }
    for (guint i = 0; i < header->extensions->len; i++) {
        const Qcow2Extension *kept = &g_array_index(header->extensions, Qcow2Extension, i);

        put_extension(out, kept->type, kept->data, kept->bytes);
    }
    put_backing_name(header, out);
    if (!fits(header, out, error)) {
        g_byte_array_unref(out);
        return NULL;
    }
    while (out->len % QCOW2_HEADER_SECTOR) {
        static const uint8_t zeroes[QCOW2_HEADER_SECTOR];

        g_byte_array_append(out, zeroes, QCOW2_HEADER_SECTOR - out->len % QCOW2_HEADER_SECTOR);
    }
    *ret_bytes = out->len;
    return g_byte_array_free(out, FALSE);
}

uint8_t *qcow2_header_encode(const Qcow2Header *header, size_t *ret_bytes, GError **error)
{
    return encode(header, true, ret_bytes, error);
}

uint8_t *qcow2_header_encode_plain(const Qcow2Header *header)
{
    size_t bytes;
    uint8_t *plain = encode(header, false, &bytes, NULL);

    if (plain && bytes > QCOW2_HEADER_SECTOR) {
        g_clear_pointer(&plain, g_free);
    }
    return plain;
}
