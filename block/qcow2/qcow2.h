/* SPDX-License-Identifier: MIT */
/*
 * An open qcow2 image, as the files of this folder share it. docs/devel/qcow2.md tells the whole
 * story: the parts, and the numbered invariants (Q1 ...) of the order in which things are written.
 *
 * Words: a *guest* offset is one of the virtual disk, a *host* offset one in the image file (or in
 * the external data file). Offsets and lengths are bytes, unless the name says `_clusters`.
 *
 * Who may do what:
 *  - Requests (coroutines on any loop, several at a time) read and write guest data.
 *  - `lock` is held by whoever changes metadata: allocates or frees clusters, changes table
 *    entries. It may be held while table slices are read in, never while guest data moves
 *    and never while metadata is written out or synced.
 *  - Contents of cached slices and of the tables in memory are read and written under `table_lock`,
 *    which is held for some loads and stores and never over a yield. So a look at a
 *    mapping that is in the cache takes no other lock.
 *  - Metadata in the file is written by the writeback (writeback.c) alone, which knows the order,
 *    and by the control plane while the node is drained (header, snapshots, bitmaps, resize,
 * check).
 *  - Everything else (geometry, header, options) changes only while the node is drained.
 */
#ifndef MERINO_QCOW2_H
#define MERINO_QCOW2_H

#include "block/driver.h"
#include "format.h"

typedef struct Qcow2Bitmaps Qcow2Bitmaps;   /* bitmaps.h */
typedef struct Qcow2Cache Qcow2Cache;       /* cache.h */
typedef struct Qcow2Freed Qcow2Freed;       /* free.c: clusters that will be free */
typedef struct Qcow2InFlight Qcow2InFlight; /* in-flight.c: allocations that are not linked yet */
typedef struct Qcow2Overlap Qcow2Overlap;   /* overlap.c: which clusters hold metadata */
typedef struct Qcow2Writer Qcow2Writer;     /* writeback.c: who writes back and who waits */

/* An extension of the header that we do not know; kept as found. */
typedef struct Qcow2Extension {
    uint32_t type;
    uint32_t bytes;
    uint8_t *data;
} Qcow2Extension;

/* The header, decoded and checked (header.c). */
typedef struct Qcow2Header {
    unsigned version; /* 2 or 3 */
    unsigned cluster_bits;
    int64_t size;
    int64_t l1_offset;
    uint32_t l1_entries;
    int64_t reftable_offset;
    uint32_t reftable_clusters;
    uint32_t n_snapshots;
    int64_t snapshots_offset;
    uint64_t incompatible, compatible, autoclear; /* enum Qcow2Incompatible ... */
    unsigned refcount_order;                      /* refcounts are 1 << order bits wide */
    unsigned compression_type;                    /* Qcow2CompressionType */
    uint32_t header_bytes;                        /* as found: 72, or 104 and more */
    uint8_t *unknown_fields; /* header bytes beyond those we know, kept as found; or NULL */
    size_t unknown_field_bytes;
    char *backing_name;   /* NULL: no backing file */
    char *backing_format; /* NULL: not said */
    char *data_file_name; /* NULL: not said */
    bool has_bitmaps;     /* the next three count; not checked yet */
    uint32_t n_bitmaps;
    int64_t bitmap_dir_offset;
    int64_t bitmap_dir_bytes;
    char *bitmaps_fault;   /* NULL; or why the bitmaps extension that was found is none: it is among
                              `extensions` then */
    GArray *extensions;    /* of Qcow2Extension */
    GArray *feature_names; /* of Qcow2DiskFeatureName, as found; for messages */
} Qcow2Header;

/* A table that is wholly in memory: L1 and the refcount table. Entries are in host order. */
typedef struct Qcow2Table {
    int64_t offset;   /* in the file */
    uint32_t entries; /* in use */
    uint64_t *entry;  /* under table_lock */
    uint8_t *dirty;   /* one byte for each 512 bytes of the table; under table_lock */
    bool any_dirty;
    bool moved; /* the refcount table lies elsewhere than the header in the file says */
} Qcow2Table;

/* One internal snapshot (snapshot.c). */
typedef struct Qcow2Snapshot {
    int64_t l1_offset;
    uint32_t l1_entries;
    char *id, *name;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_nsec;
    uint64_t vm_state_bytes;
    int64_t disk_size;
    uint64_t icount;      /* UINT64_MAX: none */
    uint32_t extra_bytes; /* that the entry has in the file, known or not */
    uint8_t *unknown_extra;
    uint32_t unknown_extra_bytes;
    bool overlong; /* found by a check: what follows the entries that it needs is no L1 table */
} Qcow2Snapshot;

enum {
    QCOW2_OVERLAP_HEADER = 1 << 0,
    QCOW2_OVERLAP_ACTIVE_L1 = 1 << 1,
    QCOW2_OVERLAP_ACTIVE_L2 = 1 << 2,
    QCOW2_OVERLAP_REFCOUNT_BLOCK = 1 << 3,
    QCOW2_OVERLAP_REFCOUNT_TABLE = 1 << 4,
    QCOW2_OVERLAP_SNAPSHOT_TABLE = 1 << 5,
    QCOW2_OVERLAP_INACTIVE_L1 = 1 << 6,
    QCOW2_OVERLAP_INACTIVE_L2 = 1 << 7,
    QCOW2_OVERLAP_BITMAP_DIRECTORY = 1 << 8,
};

/* The options in force (options.c). */
typedef struct Qcow2Options {
    bool lazy_refcounts;
    bool pass_discard_request;  /* discards by the guest reach the file */
    bool pass_discard_snapshot; /* so do clusters freed with a snapshot */
    bool pass_discard_other;
    unsigned overlap_check; /* QCOW2_OVERLAP_* */
    int64_t l2_cache_size;  /* bytes */
    int64_t l2_slice_size;  /* l2-cache-entry-size, bytes */
    int64_t refcount_cache_size;
    int64_t cache_clean_interval; /* seconds; 0: never */
} Qcow2Options;

typedef struct Qcow2 {
    BlockNode *node;
    BlockChild *data_file; /* where guest data lies: node->file, or the external data file */

    Qcow2Header header;
    Qcow2Options options;

    /* Geometry, from the header. */
    int64_t cluster_size;
    unsigned l2_entry_size; /* 8, or 16 with extended entries */
    unsigned l2_bits;       /* an L2 table has 1 << l2_bits entries */
    unsigned subclusters;   /* in a cluster: 1 or 32 */
    int64_t subcluster_size;
    unsigned refcount_bits; /* 1 << header.refcount_order */
    unsigned refblock_bits; /* a refcount block has 1 << refblock_bits entries */
    uint64_t refcount_max;  /* largest refcount */

    CoMutex lock; /* this and the next: from qcow2_tables_open() to _close() */
    GMutex table_lock;

    Qcow2Table l1;
    Qcow2Table reftable;
    Qcow2Cache *l2_cache;
    Qcow2Cache *refcount_cache;
    Qcow2Freed *freed;
    Qcow2InFlight *in_flight;
    Qcow2Overlap *overlap;
    Qcow2Writer *writer;
    struct EventTimer *clean_timer; /* drops slices that nobody uses; or NULL */
    int64_t free_hint;              /* index: no free cluster below; under lock */
    int64_t compressed_hint; /* where the next compressed bytes may go; 0: nowhere; under lock */
    int64_t meta_end; /* no cluster at or beyond it was given away since the image was opened;
                         beyond the file's end as well it reads as zeroes; under lock */
    int64_t data_end; /* the same of an external data file */
    int64_t zero_begin, zero_end; /* the file was last grown ahead there; under lock, or drained */
    bool ahead_refused;           /* and will not be again; likewise */

    Qcow2Snapshot *snapshots;
    uint32_t n_snapshots;
    int64_t snapshot_table_bytes; /* of the table in the file */
    Qcow2Bitmaps *bitmaps;

    atomic_bool signaled; /* a fault was told that did not stop us */
    atomic_bool corrupt;  /* marked corrupt while open: nothing is written any more */
    atomic_int sparse;    /* status.c: whether places may be holes in the file: 0 not known yet */
    bool header_unsure;   /* the file has another header, perhaps; under lock, or drained */
    bool flags_behind;    /* copied flags may be missing: the image stays dirty (snapshot.c) */
    bool repairing;       /* opened to be checked and repaired: dirty and corrupt are let through,
                             and snapshots are not read */
} Qcow2;

/* --- geometry --- */

static inline int64_t cluster_offset(const Qcow2 *q, int64_t offset)
{
    return offset & (q->cluster_size - 1);
}

static inline int64_t cluster_start(const Qcow2 *q, int64_t offset)
{
    return offset & ~(q->cluster_size - 1);
}

static inline int64_t size_to_clusters(const Qcow2 *q, int64_t bytes)
{
    return (bytes + (q->cluster_size - 1)) >> q->header.cluster_bits;
}

static inline bool has_data_file(const Qcow2 *q)
{
    return (q->header.incompatible & QCOW2_INCOMPAT_DATA_FILE) != 0;
}

static inline bool data_file_is_raw(const Qcow2 *q)
{
    return (q->header.autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW) != 0;
}

static inline bool has_extended_l2(const Qcow2 *q)
{
    return (q->header.incompatible & QCOW2_INCOMPAT_EXTENDED_L2) != 0;
}

/* --- header.c, header-encode.c, header-write.c --- */

/* Read and check the header of `file`. Names the field in its errors. `ret` is zeroed before. */
bool qcow2_header_read(BlockChild *file, Qcow2Header *ret, GError **error);
void qcow2_header_done(Qcow2Header *header);
/* Write q->header with all extensions and names, durably: sync, write, sync. Fails when it does not
 * fit in one cluster. When it fails otherwise, nobody knows which header is in the file: the caller
 * makes q->header what it was before, and the next writeback begins with it. Drained, or under
 * `lock`. */
int coroutine_fn qcow2_header_commit(Qcow2 *q, GError **error);
/* Write it again if that is so. */
int coroutine_fn qcow2_header_settle(Qcow2 *q);
/* Make these the feature words, durably, in a write of their own: what went before is synced first
 * when a bit is cleared (Q7). q->header follows on success. */
int coroutine_fn qcow2_set_features(Qcow2 *q, uint64_t incompatible, uint64_t autoclear,
                                    GError **error);

/* --- meta.c: metadata of the control plane: raw reads and writes in the image file, with the
 * file's own bounds; writes are checked against overlap (`ignore`: QCOW2_OVERLAP_* that is being
 * written). Neither syncs; qcow2_sync() does (skipped under cache.no-flush). --- */

int coroutine_fn qcow2_meta_read(Qcow2 *q, int64_t host, void *buf, int64_t bytes);
int coroutine_fn qcow2_meta_write(Qcow2 *q, int64_t host, const void *buf, int64_t bytes,
                                  unsigned ignore);
int coroutine_fn qcow2_sync(Qcow2 *q);

/* --- alloc.c: clusters of the image file. All under `lock`. --- */

/* `bytes` of contiguous clusters, refcount 1, in memory: the refcounts reach the file with the next
 * writeback. Returns the host offset or -errno. */
int64_t coroutine_fn qcow2_alloc(Qcow2 *q, int64_t bytes);
/* Data: at least one and at most `max_clusters` contiguous clusters, at `*host` if possible (0:
 * anywhere). Writes `*host` and returns the number, or -errno. */
int64_t coroutine_fn qcow2_alloc_data(Qcow2 *q, int64_t *host, int64_t max_clusters);
/* Room for compressed bytes, which may share a cluster with others. Host offset or -errno. */
int64_t coroutine_fn qcow2_alloc_compressed(Qcow2 *q, int64_t bytes);

typedef enum Qcow2DiscardType {
    QCOW2_DISCARD_NEVER,
    QCOW2_DISCARD_REQUEST,
    QCOW2_DISCARD_SNAPSHOT,
    QCOW2_DISCARD_OTHER,
    QCOW2_DISCARD_ALWAYS,
} Qcow2DiscardType;

/* Drop one reference to each cluster that the range touches. It takes effect (the refcount falls,
 * space is given back, the cluster may be used again) once a writeback has made durable whatever
 * was changed before this call, and every request in flight by now has ended. */
void qcow2_free(Qcow2 *q, int64_t host, int64_t bytes, Qcow2DiscardType type);

/* --- refcount.c. Under `lock`. --- */

int coroutine_fn qcow2_refcount_get(Qcow2 *q, int64_t cluster_index, uint64_t *ret);
/* Add `delta` (may be negative) to a run of clusters, at once. All or nothing. -ERANGE beyond the
 * width, -EINVAL below zero (which is told). */
int coroutine_fn qcow2_refcount_add(Qcow2 *q, int64_t first_cluster, int64_t n, int delta);

/* --- writeback.c --- */

/* Write everything that is dirty in the order of the invariants; durable when it returns 0, unless
 * cache.no-flush. One at a time; callers join. Takes `lock` for short by itself. Also lets
 * freed clusters become free. */
int coroutine_fn qcow2_writeback(Qcow2 *q);
/* Write back, and drop every clean slice. Drained. */
int coroutine_fn qcow2_empty_caches(Qcow2 *q);
/* Write everything, refcounts too where they are lazy, and let what was freed become free. Drained.
 */
int coroutine_fn qcow2_write_all(Qcow2 *q);
/* The last writeback before the image is closed or becomes read-only: qcow2_write_all(),
 * then the dirty flag goes. Drained. */
int coroutine_fn qcow2_mark_clean(Qcow2 *q);

/* --- corruption (overlap.c) --- */

/* Whether a write of the range would hit metadata (other than `ignore`): marks the image corrupt
 * and returns -EIO if so. */
int coroutine_fn qcow2_check_overlap(Qcow2 *q, unsigned ignore, int64_t host, int64_t bytes);
/* Say so (event BLOCK_IMAGE_CORRUPTED, QEMU's words), set the corrupt bit, let nothing be written
 * any more when `fatal`. host < 0: no offset to tell. */
void coroutine_fn qcow2_mark_corrupt(Qcow2 *q, bool fatal, int64_t host, int64_t bytes,
                                     const char *format, ...) G_GNUC_PRINTF(5, 6);

/* What holds metadata has changed beside the allocator (snapshots, bitmaps, resize): look again.
 * Drained, and called once by whoever opens the image, after snapshots and bitmaps are known. */
void coroutine_fn qcow2_overlap_refresh(Qcow2 *q);
/* A cluster range that holds metadata from now on. Any time. */
void qcow2_overlap_add(Qcow2 *q, unsigned what, int64_t host, int64_t bytes);

/* --- tables: life (tables.c). Control plane, in or outside of coroutines. --- */

/* Read L1 and the refcount table, make caches, from header and options; q->data_file is set. */
bool qcow2_tables_open(Qcow2 *q, GError **error);
void qcow2_tables_close(Qcow2 *q);
/* The same anew, after the file was changed beside the caches, which are clean. When it fails, what
 * is in memory is not what is in the file, and nothing is written any more. */
bool qcow2_tables_reload(Qcow2 *q, GError **error);
/* New cache sizes or other options, drained and written back. */
void qcow2_tables_apply_options(Qcow2 *q);

/* --- requests: the driver's functions, by file --- */

/* read.c, write.c, zero.c (zeroes and discards), status.c, compress.c, resize.c */
int coroutine_fn qcow2_co_preadv(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                 unsigned flags);
int coroutine_fn qcow2_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                  unsigned flags);
int coroutine_fn qcow2_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                        unsigned flags);
int coroutine_fn qcow2_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes);
int coroutine_fn qcow2_co_flush(BlockNode *node);
int coroutine_fn qcow2_co_block_status(BlockNode *node, int64_t offset, int64_t bytes,
                                       BlockStatus *ret_status);
int coroutine_fn qcow2_co_truncate(BlockNode *node, int64_t size, PreallocMode prealloc,
                                   GError **error);

/* Grow or shrink, with so much made ready for the new part. Drained. */
int coroutine_fn qcow2_resize(Qcow2 *q, int64_t size, PreallocMode prealloc, GError **error);
/* Give the range of the disk clusters, as far as it has none; PREALLOC_MODE_OFF does nothing.
 * Drained; for new images and resize. */
int coroutine_fn qcow2_preallocate(Qcow2 *q, int64_t offset, int64_t bytes, PreallocMode prealloc,
                                   GError **error);

#endif
