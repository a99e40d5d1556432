/* SPDX-License-Identifier: MIT */
/*
 * The bitmap directory and bitmap tables as bytes: decoded, checked, encoded. Works on buffers
 * only.
 *
 * A directory may be damaged anywhere. Parsing finds what is sound beside what is not: entries are
 * framed by their own lengths, so when the frame of one is wrong, the next place is sought where an
 * entry stands that makes sense in every field. What lies between is listed as one broken entry,
 * under the name that can be read there.
 */
#ifndef MERINO_QCOW2_BITMAP_DIRECTORY_H
#define MERINO_QCOW2_BITMAP_DIRECTORY_H

#include "format.h"

#include <stdatomic.h>
#include <stdbool.h>

/* The bits of one bitmap, in bytes: QEMU's limit. */
#define QCOW2_MAX_BITMAP_DATA (INT64_C(512) << 20)

/* What the sizes in a directory are checked against. */
typedef struct Qcow2BitmapGeometry {
    unsigned cluster_bits;
    int64_t disk_size;
    int64_t file_size; /* references beyond are wrong */
} Qcow2BitmapGeometry;

typedef struct Qcow2BitmapEntry {
    char *name; /* valid UTF-8, and different from every other's in the directory */
    uint8_t *raw_name;
    size_t raw_name_bytes; /* the name as it stands in the file */
    int64_t table_offset;
    uint32_t table_entries;
    _Atomic uint32_t flags; /* Qcow2BitmapFlags, as in the file */
    uint8_t type;
    uint8_t granularity_bits;
    uint8_t *extra;
    uint32_t extra_bytes;
    int64_t position; /* of the entry in the directory, bytes; -1: it is not in the file */
    char *fault;      /* what is wrong with it, as a clause without subject; NULL: nothing */

    /* The rest is for whoever keeps entries in memory. */
    unsigned refs;
    uint64_t *table;          /* in host order; NULL: not read */
    int64_t stored_size;      /* of the disk, when the table was written, or less since: beyond it
                                 the stored bits mean nothing */
    atomic_bool to_be_marked; /* in use, with the next that are; set with a fault */
} Qcow2BitmapEntry;

Qcow2BitmapEntry *qcow2_bitmap_entry_new(const char *name, int64_t granularity);
Qcow2BitmapEntry *qcow2_bitmap_entry_ref(Qcow2BitmapEntry *entry);
void qcow2_bitmap_entry_unref(Qcow2BitmapEntry *entry);
/* An array that holds references. */
GPtrArray *qcow2_bitmap_entries_new(void);

/* Remember the first thing that is wrong. */
void qcow2_bitmap_entry_fault(Qcow2BitmapEntry *entry, const char *format, ...) G_GNUC_PRINTF(2, 3);

typedef struct Qcow2BitmapDirectory {
    GPtrArray *entries; /* of Qcow2BitmapEntry, owned, in the file's order */
    GPtrArray *faults;  /* sentences about the directory itself */
} Qcow2BitmapDirectory;

void qcow2_bitmap_directory_init(Qcow2BitmapDirectory *ret);
void qcow2_bitmap_directory_done(Qcow2BitmapDirectory *directory);

/*
 * Take apart `bytes` of what may be a directory of `said_bytes` with `said_n` entries (the header's
 * numbers, in whatever state). `bytes` may be more than the directory: it is looked at only if the
 * numbers are wrong. Never fails; `ret` was initialised.
 */
void qcow2_bitmap_directory_parse(const uint8_t *buf, size_t bytes, uint64_t said_bytes,
                                  uint32_t said_n, const Qcow2BitmapGeometry *geometry,
                                  Qcow2BitmapDirectory *ret);

/* The bytes of a directory of these entries, with their positions set. */
GByteArray *qcow2_bitmap_directory_encode(GPtrArray *entries);
/* How many bytes an entry takes. */
size_t qcow2_bitmap_entry_bytes(const Qcow2BitmapEntry *entry);

/* How many bytes of bits, and table entries, a bitmap takes for a disk of that size. */
uint64_t qcow2_bitmap_bits(int64_t disk_size, unsigned granularity_bits);
uint64_t qcow2_bitmap_data_bytes(int64_t disk_size, unsigned granularity_bits);
uint64_t qcow2_bitmap_table_entries(const Qcow2BitmapGeometry *geometry, unsigned granularity_bits);
/* Whether a bitmap of that granularity fits into an image at all. */
bool qcow2_bitmap_fits(const Qcow2BitmapGeometry *geometry, unsigned granularity_bits);

/* Whether a range lies in the file, from a cluster's start on. */
bool qcow2_bitmap_range_ok(const Qcow2BitmapGeometry *geometry, uint64_t offset, uint64_t bytes);
/* What is wrong with a table entry, as a clause; NULL: nothing. */
const char *qcow2_bitmap_table_entry_fault(const Qcow2BitmapGeometry *geometry, uint64_t value);

/*
 * References to the same clusters from two places in the entries' tables (of those that were read)
 * and table places, or from there to clusters that are `taken` (host offsets): faults of the
 * entries concerned.
 */
void qcow2_bitmap_find_overlaps(GPtrArray *entries, unsigned cluster_bits, const int64_t taken[],
                                size_t n_taken);

#endif
