/* SPDX-License-Identifier: MIT */
/*
 * A qcow2 image on paper, for tests of the bitmaps: the functions of qcow2.h by which bitmaps reach
 * the file, over memory that tells what is durable from what is only written. At a chosen step the
 * power fails: from then on nothing works; then the file may be looked at with the writes since the
 * last sync there, gone, or there in part.
 */
#ifndef MERINO_TESTS_QCOW2_PAPER_H
#define MERINO_TESTS_QCOW2_PAPER_H

#include "block/qcow2/bitmaps.h"

#define PAPER_CLUSTER_BITS 9
#define PAPER_CLUSTERS     1024

typedef struct Paper {
    uint8_t *data, *durable;
    GPtrArray *writes; /* since the last sync */
    uint8_t refcounts[PAPER_CLUSTERS], durable_refcounts[PAPER_CLUSTERS];
    GArray *freed;  /* clusters; they become free with the next writeback */
    int steps;      /* writes and syncs that were done */
    int steps_left; /* until the power fails; negative: it does not */
    int reads;      /* of the file */
    bool dead;
} Paper;

/* An image without bitmaps. */
Paper *paper_new(int64_t disk_size);
void paper_free(Paper *paper);

/* Power comes back: each sector written since the last sync is there with the given chance. The
 * refcounts are those that the bitmaps need, as after a repair of leaks. */
void paper_restart(Paper *paper, GRand *random, double chance);

/* Open and close as the driver would. */
Qcow2 *paper_open(Paper *paper, int64_t disk_size, bool read_only);
void paper_close(Qcow2 *q);
/* Let go without writing anything, as a process that is killed. */
void paper_drop(Qcow2 *q);

/* Every cluster that bitmaps refer to has a durable refcount of just the references. */
void paper_check(Qcow2 *q, bool exact);

#endif
