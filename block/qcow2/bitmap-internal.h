/* SPDX-License-Identifier: MIT */
/*
 * Bitmaps in the image: the struct and the steps that the bitmap-*.c files share.
 *
 * `entries` is the directory as it is in the file; it changes only while the node is drained,
 * except for the flags of entries, which marking sets on any thread (one call at a time). A
 * bitmap of the node's list that is persistent and has no entry was not stored yet.
 */
#ifndef MERINO_QCOW2_BITMAP_INTERNAL_H
#define MERINO_QCOW2_BITMAP_INTERNAL_H

#include "bitmap-directory.h"
#include "bitmaps.h"
#include "parts.h"

struct Qcow2Bitmaps {
    GPtrArray *entries;  /* of Qcow2BitmapEntry; with references */
    GHashTable *by_name; /* of Qcow2BitmapEntry */
    bool damaged;        /* the directory in the file is, as such: it is written anew before it is
                            relied on, and its clusters are left alone */
    bool unreadable;     /* nothing is known of it: the autoclear bit goes before the first write */
    bool bits_unsure;    /* storing failed: what is read back of bits may not be durable ever */
};

extern const BitmapStore qcow2_bitmap_store;

Qcow2BitmapGeometry qcow2_bitmap_geometry(const Qcow2 *q);

/* --- bitmap-load.c --- */

/* Read the directory that the header tells of. False: it cannot be read, for the reason that is the
 * last of ret->faults. `ret` was initialised. */
bool coroutine_fn qcow2_bitmaps_read_directory(Qcow2 *q, Qcow2BitmapDirectory *ret);
/* Bring in entry->table, if it is not there. Whether there is no fault; what is wrong with the
 * table becomes one. */
bool coroutine_fn qcow2_bitmaps_need_table(Qcow2 *q, Qcow2BitmapEntry *entry);
/* The same for all that have no fault yet (those in use too if `in_use` says so), as far as they
 * take no undue memory; then also who refers to the same clusters is found. */
void coroutine_fn qcow2_bitmaps_read_tables(Qcow2 *q, GPtrArray *entries, bool in_use);
/* A granularity that a bitmap of the disk can have, whatever the entry says. */
int64_t qcow2_bitmaps_listed_granularity(const Qcow2 *q, const Qcow2BitmapEntry *entry);
/* One cluster of bits; what lies beyond the end of the file reads as zeroes. */
int coroutine_fn qcow2_bitmaps_read_bits(Qcow2 *q, int64_t host, void *buf, int64_t bytes);

/* The BitmapStore's. */
bool qcow2_bitmaps_load(void *opaque, const DirtyBitmap *bitmap, HBitmap *bits, GError **error);

/* --- bitmap-mark.c --- */

int coroutine_fn qcow2_bitmaps_co_mark(void *opaque, DirtyBitmap *const bitmaps[], size_t n,
                                       GError **error);
/* Write entries [first, end) in place, of which just the flags may differ from what is in the file,
 * and sync. */
int coroutine_fn qcow2_bitmaps_write_flags(Qcow2 *q, GPtrArray *entries, guint first, guint end);
/* Nobody knows which directory or which flags are in the file: the next mark writes all anew. */
void qcow2_bitmaps_be_unsure(Qcow2 *q);

/* --- bitmap-switch.c --- */

/* Clusters that nothing in the file will refer to. */
typedef struct Qcow2BitmapFrees {
    GArray *ranges; /* of int64_t offset, bytes */
} Qcow2BitmapFrees;

void qcow2_bitmap_frees_init(Qcow2BitmapFrees *frees);
void qcow2_bitmap_frees_done(Qcow2BitmapFrees *frees);
void qcow2_bitmap_frees_add(Qcow2BitmapFrees *frees, int64_t host, int64_t bytes);
/* All that an entry refers to, unless it has a fault: then it may be another's. */
void coroutine_fn qcow2_bitmap_frees_add_entry(Qcow2 *q, Qcow2BitmapFrees *frees,
                                               Qcow2BitmapEntry *entry);
/* Drop the references, of clusters that have just one. Nothing in the file refers to them now. */
int coroutine_fn qcow2_bitmap_frees_run(Qcow2 *q, Qcow2BitmapFrees *frees);
/* Whether a cluster has exactly one reference, which is then the bitmap's own. */
bool coroutine_fn qcow2_bitmaps_owns(Qcow2 *q, int64_t host);

/*
 * Make `entries` the directory: written to clusters of its own, then the header is
 * switched to it in one write. What entries refer to was written and synced. The old
 * directory's clusters join `frees`. On failure the old directory is in force, in the file and in
 * memory.
 */
int coroutine_fn qcow2_bitmaps_switch_directory(Qcow2 *q, GPtrArray *entries,
                                                Qcow2BitmapFrees *frees, GError **error);

/* `entries` are in force now. */
void qcow2_bitmaps_adopt(Qcow2Bitmaps *b, GPtrArray *entries);

/* --- bitmap-bits.c: the clusters of bits themselves --- */

/* One cluster of bits to be written. */
typedef struct Qcow2BitsCluster {
    uint32_t index; /* in the table */
    bool fresh;     /* in a new place; else over what is there */
    int64_t source; /* bits that are to be kept; 0: none */
} Qcow2BitsCluster;

/* What is to be written of one bitmap. */
typedef struct Qcow2Bits {
    HBitmap *bits;
    HBitmap *known;        /* what is stored; NULL: anything, or if: */
    bool adds;             /* `bits` are what is added to that */
    const uint64_t *table; /* where they go */
    GArray *clusters;      /* of Qcow2BitsCluster, by index */
} Qcow2Bits;

#define QCOW2_BITS_PIECES 16

typedef struct Qcow2BitsPiece {
    const Qcow2Bits *what;
    uint64_t at; /* byte of the bitmap's data */
    int64_t bytes;
    int64_t source; /* 0: none */
} Qcow2BitsPiece;

/* One write. */
typedef struct Qcow2BitsRun {
    int64_t host, bytes;
    int n;
    Qcow2BitsPiece pieces[QCOW2_BITS_PIECES];
} Qcow2BitsRun;

struct Qcow2BitsWriter;

typedef struct Qcow2BitsPart {
    struct Qcow2BitsWriter *writer;
    int slot;
    Qcow2BitsRun run;
} Qcow2BitsPart;

/* Lives in a coroutine's frame; all zero but for `q` at first. */
typedef struct Qcow2BitsWriter {
    Qcow2 *q;
    Qcow2BitsRun next; /* what gathers */
    Qcow2Parts parts;
    Qcow2BitsPart slots[QCOW2_PARTS_MAX];
} Qcow2BitsWriter;

/* Have the bits of one bitmap written. `what` stays as it is until the end. */
void coroutine_fn qcow2_bits_write(Qcow2BitsWriter *writer, const Qcow2Bits *what);
/* All are written (not synced) when this returns 0. */
int coroutine_fn qcow2_bits_end(Qcow2BitsWriter *writer);

/* --- bitmap-store.c --- */

int coroutine_fn qcow2_bitmaps_co_store(Qcow2 *q, GError **error);

#endif
