/* SPDX-License-Identifier: MIT */
/*
 * The qcow2 header: hand-made ones with each field at its limits, what is unknown is kept, and what
 * is written is what was read.
 */
#include "block/qcow2/header.h"
#include "io-harness.h"
#include "util/size.h"

#include <inttypes.h>
#include <string.h>

#define CLUSTER 65536

static uint8_t image[4 * CLUSTER];

/* --- making headers --- */

static void put(size_t offset, size_t bytes, uint64_t value)
{
    for (size_t i = 0; i < bytes; i++) {
        image[offset + i] = (uint8_t)(value >> (8 * (bytes - 1 - i)));
    }
}

#define FIELD(name, value)                                                                         \
    put(offsetof(Qcow2DiskHeader, name), sizeof(((Qcow2DiskHeader *)0)->name), value)

/* A disk of 64 MiB without any extension. */
static void sound_header(void)
{
    memset(image, 0, sizeof(image));
    FIELD(magic, QCOW2_MAGIC);
    FIELD(version, 3);
    FIELD(cluster_bits, 16);
    FIELD(size, 64 * MiB);
    FIELD(l1_entries, 1);
    FIELD(l1_offset, 3 * CLUSTER);
    FIELD(reftable_offset, CLUSTER);
    FIELD(reftable_clusters, 1);
    FIELD(refcount_order, 4);
    FIELD(header_bytes, QCOW2_OUR_HEADER_BYTES);
}

/* Returns the offset behind it. */
static size_t put_extension(size_t at, uint32_t type, const void *data, uint32_t bytes)
{
    put(at, 4, type);
    put(at + 4, 4, bytes);
    memcpy(image + at + 8, data, bytes);
    return at + 8 + ((bytes + 7) & ~7u);
}

static size_t put_name(size_t at, unsigned kind, unsigned bit, const char *name)
{
    image[at] = (uint8_t)kind;
    image[at + 1] = (uint8_t)bit;
    memcpy(image + at + 2, name, strlen(name));
    return at + sizeof(Qcow2DiskFeatureName);
}

/* Read `bytes` of `image` as a file. The error's text, or NULL. */
static char *read_part(size_t bytes, Qcow2Header *header)
{
    g_autofree char *path = temp_path("image");
    GError *error = NULL;
    BlockBackend *user;
    char *text;
    bool ok;

    g_assert_true(g_file_set_contents(path, (const char *)image, (gssize)bytes, NULL));
    user = open_user(add_node("{'driver':'file','node-name':'f','filename':'%s'}", path),
                     PERM_CONSISTENT_READ);
    ok = qcow2_header_read(backend_root(user), header, &error);
    if (ok && !qcow2_header_check_snapshots(header, &error)) {
        qcow2_header_done(header);
        ok = false;
    }
    g_assert_true(ok == !error);
    text = error ? g_strdup(error->message) : NULL;
    g_clear_error(&error);
    backend_free(user);
    delete_node("f");
    return text;
}

static char *read_error(void)
{
    Qcow2Header header = { 0 };
    char *text = read_part(sizeof(image), &header);

    qcow2_header_done(&header);
    return text;
}

static void read_sound(Qcow2Header *header)
{
    assert_text(read_part(sizeof(image), header), NULL);
}

/* --- fields at their limits --- */

typedef struct FieldCase {
    size_t offset, bytes;
    uint64_t value;
    const char *error; /* NULL: it is fine */
} FieldCase;

#define CASE(name, value, error)                                                                   \
    {                                                                                              \
        offsetof(Qcow2DiskHeader, name), sizeof(((Qcow2DiskHeader *)0)->name), value, error        \
    }

static const FieldCase field_cases[] = {
    CASE(magic, 0x514649fa, "Image is not in qcow2 format"),
    CASE(version, 1, "Unsupported qcow2 version 1"),
    CASE(version, 2, NULL),
    CASE(version, 4, "Unsupported qcow2 version 4"),
    CASE(cluster_bits, 8, "Unsupported cluster size: 2^8"),
    CASE(cluster_bits, 22, "Unsupported cluster size: 2^22"),
    CASE(cluster_bits, UINT32_MAX, "Unsupported cluster size: 2^4294967295"),
    CASE(cluster_bits, 9, "L1 table is too small"),
    CASE(cluster_bits, 21, "Reference count table offset invalid"),
    CASE(header_bytes, 0, "qcow2 header too short"),
    CASE(header_bytes, 103, "qcow2 header too short"),
    CASE(header_bytes, 104, NULL),
    CASE(header_bytes, 65536, NULL),
    CASE(header_bytes, 65537, "qcow2 header exceeds cluster size"),
    CASE(header_bytes, UINT32_MAX, "qcow2 header exceeds cluster size"),
    CASE(backing_name_offset, 65537, "Invalid backing file offset"),
    CASE(backing_name_offset, UINT64_MAX, "Invalid backing file offset"),
    CASE(crypt_method, 1, "Encrypted images are not supported: the image is encrypted with AES"),
    CASE(crypt_method, 2, "Encrypted images are not supported: the image is encrypted with LUKS"),
    CASE(crypt_method, 3, "Unsupported encryption method 3"),
    CASE(refcount_order, 6, NULL),
    CASE(refcount_order, 7, "Reference count entry width too large; may not exceed 64 bits"),
    CASE(compression_type, 1, "qcow2: Compression type incompatible feature bit must be set"),
    CASE(compression_type, 2, "qcow2: unknown compression type: 2"),
    CASE(incompatible, QCOW2_INCOMPAT_COMPRESSION,
         "qcow2: Compression type incompatible feature bit must not be set"),
    CASE(incompatible, QCOW2_INCOMPAT_DIRTY, NULL),
    CASE(incompatible, QCOW2_INCOMPAT_CORRUPT, NULL),
    CASE(incompatible, 32, "Unsupported qcow2 feature(s): Unknown incompatible feature: 20"),
    CASE(incompatible, UINT64_C(1) << 63,
         "Unsupported qcow2 feature(s): Unknown incompatible feature: 8000000000000000"),
    CASE(compatible, UINT64_MAX, NULL),
    CASE(autoclear, QCOW2_AUTOCLEAR_DATA_FILE_RAW, "data-file-raw requires a data file"),
    CASE(autoclear, 1 << 5, NULL),
    CASE(size, 0, NULL),
    CASE(size, 512 * MiB, NULL),
    CASE(size, 512 * MiB + 1, "L1 table is too small"),
    CASE(size, UINT64_C(1) << 62, "Image is too big"),
    CASE(size, UINT64_C(1) << 63, "Image is too big"),
    CASE(size, UINT64_MAX, "Image is too big"),
    CASE(l1_entries, 0, "L1 table is too small"),
    CASE(l1_entries, 4194304, NULL),
    CASE(l1_entries, 4194305, "Active L1 table too large"),
    CASE(l1_entries, UINT32_MAX, "Active L1 table too large"),
    CASE(l1_offset, 1, "Active L1 table offset invalid"),
    CASE(l1_offset, CLUSTER - 512, "Active L1 table offset invalid"),
    CASE(l1_offset, UINT64_C(1) << 63, "Active L1 table offset invalid"),
    CASE(l1_offset, INT64_MAX - 65535, NULL),
    CASE(l1_offset, UINT64_MAX - 65535, "Active L1 table offset invalid"),
    CASE(reftable_clusters, 0, "Image does not contain a reference count table"),
    CASE(reftable_clusters, 128, NULL),
    CASE(reftable_clusters, 129, "Reference count table too large"),
    CASE(reftable_clusters, UINT32_MAX, "Reference count table too large"),
    CASE(reftable_offset, 512, "Reference count table offset invalid"),
    CASE(reftable_offset, UINT64_C(1) << 63, "Reference count table offset invalid"),
    CASE(reftable_offset, INT64_MAX - 65535, "Reference count table offset invalid"),
    CASE(n_snapshots, 65536, NULL),
    CASE(n_snapshots, 65537, "Snapshot table too large"),
    CASE(snapshots_offset, 1, "Snapshot table offset invalid"),
    CASE(snapshots_offset, UINT64_C(1) << 63, "Snapshot table offset invalid"),
};

static void test_fields_at_their_limits(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(field_cases); i++) {
        const FieldCase *c = &field_cases[i];

        sound_header();
        put(c->offset, c->bytes, c->value);
        g_test_message("offset %zu: %" PRIx64, c->offset, c->value);
        assert_text(read_error(), c->error);
    }
}

static void test_version_2_has_no_features(void)
{
    Qcow2Header header = { 0 };

    sound_header();
    FIELD(version, 2);
    FIELD(incompatible, UINT64_MAX);
    FIELD(autoclear, UINT64_MAX);
    FIELD(refcount_order, 9);
    put(QCOW2_V2_HEADER_BYTES, 8, 0); /* the end of the extensions */
    read_sound(&header);
    g_assert_cmpuint(header.incompatible, ==, 0);
    g_assert_cmpuint(header.autoclear, ==, 0);
    g_assert_cmpuint(header.refcount_order, ==, 4);
    g_assert_cmpuint(header.header_bytes, ==, QCOW2_V2_HEADER_BYTES);
    qcow2_header_done(&header);
}

/* What a short file lacks reads as zeroes. */
static void test_short_files(void)
{
    static const struct {
        size_t bytes;
        const char *error;
    } cases[] = {
        { 0, "Image is not in qcow2 format" }, { 3, "Image is not in qcow2 format" },
        { 4, "Unsupported qcow2 version 0" },  { 8, "Unsupported cluster size: 2^0" },
        { 72, "qcow2 header too short" },      { 100, "qcow2 header too short" },
        { QCOW2_V3_HEADER_BYTES, NULL },       { QCOW2_OUR_HEADER_BYTES, NULL },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        Qcow2Header header = { 0 };

        sound_header();
        assert_text(read_part(cases[i].bytes, &header), cases[i].error);
        qcow2_header_done(&header);
    }
}

static void test_extended_l2_needs_larger_clusters(void)
{
    sound_header();
    FIELD(incompatible, QCOW2_INCOMPAT_EXTENDED_L2);
    FIELD(size, 256 * MiB);
    assert_text(read_error(), NULL);
    FIELD(size, 256 * MiB + 1);
    assert_text(read_error(), "L1 table is too small");
    FIELD(cluster_bits, 13);
    assert_text(read_error(), "Unsupported subcluster size: 256");
}

/* --- extensions --- */

static void test_unknown_features_are_named(void)
{
    size_t at = QCOW2_OUR_HEADER_BYTES + 8;
    size_t begin = at;

    sound_header();
    FIELD(incompatible, 1 << 5 | UINT64_C(1) << 7 | UINT64_C(1) << 63);
    at = put_name(at, 1, 7, "not this one");
    at = put_name(at, 0, 5, "sleight of hand");
    at = put_name(at, 0, 5, "said twice");
    at = put_name(at, 0, 200, "no bit");
    at = put_name(at, 0, 63, "0123456789012345678901234567890123456789012345");
    put(QCOW2_OUR_HEADER_BYTES, 4, QCOW2_EXT_FEATURE_NAMES);
    put(QCOW2_OUR_HEADER_BYTES + 4, 4, at - begin);
    assert_text(read_error(), "Unsupported qcow2 feature(s): sleight of hand, "
                              "0123456789012345678901234567890123456789012345, "
                              "Unknown incompatible feature: 80");
}

static void test_extensions_are_checked(void)
{
    sound_header();
    put_extension(QCOW2_OUR_HEADER_BYTES, QCOW2_EXT_BACKING_FORMAT, "0123456789abcdef", 16);
    assert_text(read_error(), "ERROR: ext_backing_format: len=16 too large (>=16)");
    sound_header();
    put_extension(QCOW2_OUR_HEADER_BYTES, 0x12345678, "x", 1);
    put(QCOW2_OUR_HEADER_BYTES + 4, 4, CLUSTER);
    assert_text(read_error(), "Header extension too large");
    put(QCOW2_OUR_HEADER_BYTES + 4, 4, UINT32_MAX);
    assert_text(read_error(), "Header extension too large");
    sound_header();
    put_extension(QCOW2_OUR_HEADER_BYTES, QCOW2_EXT_CRYPTO, "0123456789abcdef", 16);
    assert_text(read_error(), "CRYPTO header extension only expected with LUKS encryption method");
    sound_header(); /* the backing file's name ends the extensions */
    put_extension(QCOW2_OUR_HEADER_BYTES, 0x12345678, "0123456789abcdef", 16);
    FIELD(backing_name_offset, 128);
    FIELD(backing_name_bytes, 4);
    assert_text(read_error(), "Header extension too large");
}

static void test_backing_names(void)
{
    Qcow2Header header = { 0 };

    sound_header();
    FIELD(backing_name_offset, 512);
    FIELD(backing_name_bytes, QCOW2_MAX_BACKING_NAME);
    memset(image + 512, 'n', QCOW2_MAX_BACKING_NAME);
    put_extension(QCOW2_OUR_HEADER_BYTES, QCOW2_EXT_BACKING_FORMAT, "raw", 3);
    read_sound(&header);
    g_assert_cmpuint(strlen(header.backing_name), ==, QCOW2_MAX_BACKING_NAME);
    g_assert_cmpstr(header.backing_format, ==, "raw");
    qcow2_header_done(&header);
    FIELD(backing_name_bytes, QCOW2_MAX_BACKING_NAME + 1);
    assert_text(read_error(), "Backing file name too long");
    FIELD(backing_name_bytes, 4);
    FIELD(backing_name_offset, CLUSTER - 3);
    assert_text(read_error(), "Backing file name too long");
}

static void test_bitmaps_extension(void)
{
    Qcow2Header header = { 0 };
    uint8_t bytes[24] = { [3] = 2, [15] = 64, [21] = 4 };

    sound_header();
    put_extension(QCOW2_OUR_HEADER_BYTES, QCOW2_EXT_BITMAPS, bytes, sizeof(bytes));
    read_sound(&header);
    g_assert_true(header.has_bitmaps);
    g_assert_cmpuint(header.n_bitmaps, ==, 2);
    g_assert_cmpint(header.bitmap_dir_bytes, ==, 64);
    g_assert_cmpint(header.bitmap_dir_offset, ==, 4 << 16);
    qcow2_header_done(&header);

    bytes[7] = 1;
    put_extension(QCOW2_OUR_HEADER_BYTES, QCOW2_EXT_BITMAPS, bytes, sizeof(bytes));
    read_sound(&header);
    g_assert_false(header.has_bitmaps);
    g_assert_cmpstr(header.bitmaps_fault, ==, "bitmaps_ext: Reserved field is not zero");
    g_assert_cmpuint(header.extensions->len, ==, 1);
    qcow2_header_done(&header);

    sound_header();
    put_extension(QCOW2_OUR_HEADER_BYTES, QCOW2_EXT_BITMAPS, bytes, 4);
    read_sound(&header);
    g_assert_cmpstr(header.bitmaps_fault, ==, "bitmaps_ext: Invalid extension length");
    qcow2_header_done(&header);
}

/* --- writing --- */

/* A header with everything: fields and extensions that are unknown, names, a backing file. */
static void rich_header(void)
{
    static const uint8_t bitmaps[24] = { [3] = 2, [15] = 64, [21] = 4 };
    Qcow2DiskFeatureName name = { 2, 33, "a name of theirs" };
    size_t at = QCOW2_OUR_HEADER_BYTES + 16;

    sound_header();
    FIELD(header_bytes, at);
    memset(image + QCOW2_OUR_HEADER_BYTES, 0xab, 16);
    FIELD(compatible, 1 | UINT64_C(1) << 40);
    FIELD(autoclear, QCOW2_AUTOCLEAR_BITMAPS | UINT64_C(1) << 33);
    FIELD(n_snapshots, 3);
    FIELD(snapshots_offset, 7 * CLUSTER);
    at = put_extension(at, QCOW2_EXT_BITMAPS, bitmaps, sizeof(bitmaps));
    at = put_extension(at, QCOW2_EXT_BACKING_FORMAT, "qcow2", 5);
    at = put_extension(at, QCOW2_EXT_DATA_FILE, "data.raw", 8);
    at = put_extension(at, QCOW2_EXT_FEATURE_NAMES, &name, sizeof(name));
    at = put_extension(at, 0xdeadbeef, "unknown", 7);
    at = put_extension(at, 0x00c0ffee, "", 0);
    at = put_extension(at, QCOW2_EXT_END, "", 0);
    FIELD(backing_name_offset, at);
    FIELD(backing_name_bytes, 10);
    memcpy(image + at, "base.qcow2", 10);
}

static void test_what_was_read_is_written(void)
{
    Qcow2Header header = { 0 };
    g_autofree uint8_t *bytes = NULL;
    size_t size = 0;

    rich_header();
    read_sound(&header);
    bytes = qcow2_header_encode(&header, &size, NULL);
    g_assert_cmpmem(bytes, size, image, size);
    g_assert_cmpuint(size, ==, 512);
    qcow2_header_done(&header);
}

static void test_names_of_features_come_with_large_clusters(void)
{
    for (unsigned bits = 9; bits <= 16; bits++) {
        Qcow2Header header, again = { 0 };
        g_autofree uint8_t *bytes = NULL;
        size_t size = 0;

        qcow2_header_init(&header);
        header.version = 3;
        header.cluster_bits = bits;
        header.reftable_clusters = 1;
        header.refcount_order = 4;
        bytes = qcow2_header_encode(&header, &size, NULL);
        memset(image, 0, sizeof(image));
        memcpy(image, bytes, size);
        read_sound(&again);
        g_assert_cmpuint(again.feature_names->len, ==, bits >= 12 ? 8 : 0);
        qcow2_header_done(&again);
        qcow2_header_done(&header);
    }
}

static void test_a_header_is_one_cluster_at_most(void)
{
    g_autofree char *name = g_strnfill(QCOW2_MAX_BACKING_NAME, 'n');
    Qcow2Header header;
    GError *error = NULL;
    size_t size;

    qcow2_header_init(&header);
    header.version = 3;
    header.cluster_bits = 9;
    header.backing_name = g_steal_pointer(&name);
    g_assert_null(qcow2_header_encode(&header, &size, &error));
    g_assert_cmpstr(error->message, ==,
                    "The header with its extensions and the backing file's name does not fit in a "
                    "cluster");
    g_clear_error(&error);
    header.backing_name[512 - QCOW2_OUR_HEADER_BYTES - 8] = '\0';
    g_free(qcow2_header_encode(&header, &size, &error));
    g_assert_no_error(error);
    g_assert_cmpuint(size, ==, 512);
    qcow2_header_done(&header);
}

int main(int argc, char **argv)
{
    io_harness_init(&argc, &argv, false);
    g_test_add_func("/qcow2/header/limits", test_fields_at_their_limits);
    g_test_add_func("/qcow2/header/version-2", test_version_2_has_no_features);
    g_test_add_func("/qcow2/header/short-files", test_short_files);
    g_test_add_func("/qcow2/header/extended-l2", test_extended_l2_needs_larger_clusters);
    g_test_add_func("/qcow2/header/features", test_unknown_features_are_named);
    g_test_add_func("/qcow2/header/extensions", test_extensions_are_checked);
    g_test_add_func("/qcow2/header/backing-names", test_backing_names);
    g_test_add_func("/qcow2/header/bitmaps", test_bitmaps_extension);
    g_test_add_func("/qcow2/header/round-trip", test_what_was_read_is_written);
    g_test_add_func("/qcow2/header/feature-names", test_names_of_features_come_with_large_clusters);
    g_test_add_func("/qcow2/header/one-cluster", test_a_header_is_one_cluster_at_most);
    return io_harness_run();
}
