/* SPDX-License-Identifier: MIT */
/*
 * The bytes of a qcow2 image: what lies on disk, and nothing else.
 *
 * Everything on disk is big-endian. The structures here are only ever overlaid on buffers, through
 * the codec in format.c; the rest of the driver sees decoded structures. The reference is the
 * public specification of the format ("qcow2: QEMU's copy on write format", version 3).
 */
#ifndef MERINO_QCOW2_FORMAT_H
#define MERINO_QCOW2_FORMAT_H

#include <assert.h>
#include <glib.h>
#include <stdint.h>

#define QCOW2_MAGIC 0x514649fbu /* "QFI\xfb" */

/* --- limits: what an image may ask of us --- */

#define QCOW2_MIN_CLUSTER_BITS             9
#define QCOW2_MAX_CLUSTER_BITS             21
#define QCOW2_MAX_REFCOUNT_ORDER           6
#define QCOW2_MAX_BACKING_NAME             1023
#define QCOW2_MAX_L1_BYTES                 (32 << 20)
#define QCOW2_MAX_REFTABLE_BYTES           (8 << 20)
#define QCOW2_MAX_SNAPSHOTS                65536
#define QCOW2_MAX_SNAPSHOT_DIR             (1 << 30) /* bytes, with what belongs to each */
#define QCOW2_MAX_SNAPSHOT_EXTRA           1024
#define QCOW2_MAX_BITMAPS                  65535
#define QCOW2_MAX_BITMAP_NAME              1023
#define QCOW2_MAX_BITMAP_DIR               (64 << 20) /* bytes */
#define QCOW2_MAX_BITMAP_TABLE             (32 << 20) /* bytes */
#define QCOW2_MIN_BITMAP_BITS              9          /* granularity: 512 bytes ... */
#define QCOW2_MAX_BITMAP_BITS              31         /* ... 2 GiB */
#define QCOW2_SUBCLUSTERS                  32         /* of a cluster with extended L2 entries */
#define QCOW2_MIN_EXTENDED_L2_CLUSTER_BITS 14

/* --- the header --- */

typedef struct __attribute__((packed)) Qcow2DiskHeader {
    uint32_t magic;
    uint32_t version;
    uint64_t backing_name_offset;
    uint32_t backing_name_bytes;
    uint32_t cluster_bits;
    uint64_t size; /* of the virtual disk, bytes */
    uint32_t crypt_method;
    uint32_t l1_entries;
    uint64_t l1_offset;
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint32_t n_snapshots;
    uint64_t snapshots_offset;
    /* from version 3 on */
    uint64_t incompatible;
    uint64_t compatible;
    uint64_t autoclear;
    uint32_t refcount_order;
    uint32_t header_bytes;
    uint8_t compression_type; /* when header_bytes > 104 */
    uint8_t padding[7];
} Qcow2DiskHeader;

#define QCOW2_V2_HEADER_BYTES  72
#define QCOW2_V3_HEADER_BYTES  104
#define QCOW2_OUR_HEADER_BYTES 112
static_assert(sizeof(Qcow2DiskHeader) == QCOW2_OUR_HEADER_BYTES, "qcow2 header");

enum Qcow2Incompatible {
    QCOW2_INCOMPAT_DIRTY = 1 << 0,
    QCOW2_INCOMPAT_CORRUPT = 1 << 1,
    QCOW2_INCOMPAT_DATA_FILE = 1 << 2,
    QCOW2_INCOMPAT_COMPRESSION = 1 << 3,
    QCOW2_INCOMPAT_EXTENDED_L2 = 1 << 4,
    QCOW2_INCOMPAT_KNOWN = (1 << 5) - 1,
};

enum Qcow2Compatible {
    QCOW2_COMPAT_LAZY_REFCOUNTS = 1 << 0,
};

enum Qcow2Autoclear {
    QCOW2_AUTOCLEAR_BITMAPS = 1 << 0,
    QCOW2_AUTOCLEAR_DATA_FILE_RAW = 1 << 1,
    QCOW2_AUTOCLEAR_KNOWN = (1 << 2) - 1,
};

/* Header extensions: type and length, then data padded to 8 bytes. */
typedef struct __attribute__((packed)) Qcow2DiskExtension {
    uint32_t type;
    uint32_t bytes;
} Qcow2DiskExtension;
static_assert(sizeof(Qcow2DiskExtension) == 8, "qcow2 header extension");

#define QCOW2_EXT_END            0x00000000u
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXT_FEATURE_NAMES  0x6803f857u
#define QCOW2_EXT_BITMAPS        0x23852875u
#define QCOW2_EXT_CRYPTO         0x0537be77u
#define QCOW2_EXT_DATA_FILE      0x44415441u

typedef struct __attribute__((packed)) Qcow2DiskFeatureName {
    uint8_t kind; /* 0 incompatible, 1 compatible, 2 autoclear */
    uint8_t bit;
    char name[46]; /* padded with zeros, not terminated when full */
} Qcow2DiskFeatureName;
static_assert(sizeof(Qcow2DiskFeatureName) == 48, "qcow2 feature name");

/* --- tables --- */

/* L1 entries. */
#define QCOW2_L1_OFFSET_MASK 0x00fffffffffffe00ull
#define QCOW2_COPIED         (1ull << 63) /* also in L2: the refcount is exactly one */

/* Standard L2 entries. */
#define QCOW2_L2_OFFSET_MASK 0x00fffffffffffe00ull
#define QCOW2_L2_COMPRESSED  (1ull << 62)
#define QCOW2_L2_ZERO        (1ull << 0) /* reserved with extended L2 entries */

/* The second word of extended L2 entries: bit x allocates subcluster x, bit 32 + x zeroes it. */
#define QCOW2_SUB_ALLOCATED(x) (1ull << (x))
#define QCOW2_SUB_ZERO(x)      (1ull << (32 + (x)))

/* Entries of the refcount table. */
#define QCOW2_REFTABLE_OFFSET_MASK 0xfffffffffffffe00ull

/* --- snapshots --- */

typedef struct __attribute__((packed)) Qcow2DiskSnapshot {
    uint64_t l1_offset;
    uint32_t l1_entries;
    uint16_t id_bytes;
    uint16_t name_bytes;
    uint32_t date_sec;
    uint32_t date_nsec;
    uint64_t vm_clock_nsec;
    uint32_t vm_state_bytes;
    uint32_t extra_bytes;
    /* extra data, id, name; the whole padded to 8 bytes */
} Qcow2DiskSnapshot;
static_assert(sizeof(Qcow2DiskSnapshot) == 40, "qcow2 snapshot");

typedef struct __attribute__((packed)) Qcow2DiskSnapshotExtra {
    uint64_t vm_state_bytes;
    uint64_t disk_bytes;
    uint64_t icount;
} Qcow2DiskSnapshotExtra;
static_assert(sizeof(Qcow2DiskSnapshotExtra) == 24, "qcow2 snapshot extra data");

/* --- bitmaps --- */

/* Contents of the header extension QCOW2_EXT_BITMAPS. */
typedef struct __attribute__((packed)) Qcow2DiskBitmapExtension {
    uint32_t n_bitmaps;
    uint32_t reserved;
    uint64_t directory_bytes;
    uint64_t directory_offset;
} Qcow2DiskBitmapExtension;
static_assert(sizeof(Qcow2DiskBitmapExtension) == 24, "qcow2 bitmaps extension");

typedef struct __attribute__((packed)) Qcow2DiskBitmap {
    uint64_t table_offset;
    uint32_t table_entries;
    uint32_t flags;
    uint8_t type; /* 1: dirty tracking */
    uint8_t granularity_bits;
    uint16_t name_bytes;
    uint32_t extra_bytes;
    /* extra data, name; the whole padded to 8 bytes */
} Qcow2DiskBitmap;
static_assert(sizeof(Qcow2DiskBitmap) == 24, "qcow2 bitmap directory entry");

enum Qcow2BitmapFlags {
    QCOW2_BITMAP_IN_USE = 1 << 0,
    QCOW2_BITMAP_AUTO = 1 << 1, /* enabled when the image is opened */
    QCOW2_BITMAP_EXTRA_COMPATIBLE = 1 << 2,
};
#define QCOW2_BITMAP_TYPE_DIRTY 1

/* Entries of bitmap tables: a cluster of bits; or all zeros, or (with the flag) all ones. */
#define QCOW2_BITMAP_OFFSET_MASK 0x00fffffffffffe00ull
#define QCOW2_BITMAP_ALL_ONES    (1ull << 0)

#endif
