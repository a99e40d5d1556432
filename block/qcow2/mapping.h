/* SPDX-License-Identifier: MIT */
/*
 * From guest ranges to host ranges: what the L1 and L2 tables say, in runs.
 *
 * A run is as long as one kind of mapping goes on, with host offsets that go on as well, within one
 * L2 slice at most; where there is no L2 table, within what it would describe.
 */
#ifndef MERINO_QCOW2_MAPPING_H
#define MERINO_QCOW2_MAPPING_H

#include "runtime.h"

typedef enum Qcow2MapType {
    MAP_UNALLOCATED,      /* the backing file decides */
    MAP_UNALLOCATED_HOST, /* the same, of a subcluster; its cluster has a place */
    MAP_ZERO,
    MAP_ZERO_HOST, /* zeroes, but with a place */
    MAP_DATA,
    MAP_COMPRESSED, /* one cluster at a time */
} Qcow2MapType;

typedef struct Qcow2Mapping {
    Qcow2MapType type;
    bool copied;  /* has a place of its own, which may be written to */
    bool suspect; /* the place holds metadata as well */
    int64_t host; /* of the first byte, for _HOST and _DATA */
    int64_t bytes;
    uint64_t entry; /* of the compressed cluster */
} Qcow2Mapping;

static inline bool mapping_has_host(const Qcow2Mapping *map)
{
    return map->type == MAP_UNALLOCATED_HOST || map->type == MAP_ZERO_HOST || map->type == MAP_DATA;
}

/* What is at `guest`, for at most `bytes`. -EIO when tables are damaged, after telling. */
int coroutine_fn qcow2_map(Qcow2 *q, int64_t guest, int64_t bytes, Qcow2Mapping *ret);

/* Whether the whole range reads as zeroes, as far as the tables and the size of the backing
 * file tell. Or -errno. */
int coroutine_fn qcow2_range_is_zero(Qcow2 *q, int64_t guest, int64_t bytes);

/* How many bytes from the cluster of `guest` on consist of whole clusters that need a new place
 * when written to; within one slice, and not beyond `end` by more than a cluster. Or -errno. */
int64_t coroutine_fn qcow2_run_without_place(Qcow2 *q, int64_t guest, int64_t end);

/* --- changing, under `lock` --- */

/* Where the L2 entry of a cluster is in memory. */
typedef struct Qcow2Entry {
    Qcow2Slice *slice;
    uint32_t at;     /* bytes in the slice */
    uint32_t n_more; /* entries that follow in the slice */
    uint64_t entry;
    uint64_t bitmap; /* with extended entries */
} Qcow2Entry;

/* Make sure that the L2 table of `guest` exists and is this image's alone. */
int coroutine_fn qcow2_l2_prepare(Qcow2 *q, int64_t guest);
/* Find the entry in a prepared table, for changing: on success table_lock is held. */
int coroutine_fn qcow2_entry_lock(Qcow2 *q, int64_t guest, Qcow2Entry *ret);
/* Go on to the next entry of the slice; n_more was not 0. */
void qcow2_entry_next(Qcow2 *q, Qcow2Entry *entry);
/* Store it, and drop what it referred to before if that is another place. */
void qcow2_entry_set(Qcow2 *q, Qcow2Entry *entry, uint64_t value, uint64_t bitmap,
                     Qcow2DiscardType type);

/* The subclusters of one cluster that [start, stop) covers, a bit each. */
uint64_t qcow2_subcluster_mask(const Qcow2 *q, int64_t cluster, int64_t start, int64_t stop);

/* Where the bytes of a compressed cluster are: whole sectors, at most. */
void qcow2_compressed_range(const Qcow2 *q, uint64_t entry, int64_t *ret_host, int64_t *ret_bytes);

/* The host offset in an entry that has a place; 0 is a place in data files only. */
bool qcow2_entry_has_place(const Qcow2 *q, uint64_t entry);

#endif
